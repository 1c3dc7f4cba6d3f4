package integration

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/image"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
)

// The ipfs-stargz under test is built once for all tests: daemons with the race
// detector, what they are driven with without, since it compresses images.
var (
	binary = sync.OnceValues(func() (string, error) { return testbed.Build(context.Background(), false) })
	daemon = sync.OnceValues(func() (string, error) { return testbed.Build(context.Background(), true) })
)

// pair is two nodes that know each other: a pushes, b pulls.
type pair struct {
	*testbed.Bed
	t    *testing.T
	a, b *testbed.Node
	peer string // a's address
	conf testbed.DaemonConfig
}

// modes are the values of fs.mode: what holds in one has to hold in the other.
var modes = []string{"kernel", "fuse"}

// newPair starts containerd and the daemon on both nodes. conf is b's.
func newPair(t *testing.T, o testbed.Options, conf testbed.DaemonConfig) *pair {
	t.Helper()
	return newPairs(t, o, conf)[0]
}

// newTrio is a pair for each of the modes. They share their a, so that an image
// need only be pushed once; conf is that of both b, but for the mode.
func newTrio(t *testing.T, o testbed.Options, conf testbed.DaemonConfig) []*pair {
	t.Helper()
	confs := make([]testbed.DaemonConfig, len(modes))
	for i, mode := range modes {
		confs[i] = conf
		confs[i].Mode = mode
	}
	return newPairs(t, o, confs...)
}

// newPairs starts containerd and the daemon on one a, and on a b for each conf.
// With o.Daemon unset the daemons have the race detector.
func newPairs(t *testing.T, o testbed.Options, confs ...testbed.DaemonConfig) []*pair {
	t.Helper()
	pairs := preparePairs(t, o, confs...)
	for _, p := range pairs {
		p.start()
	}
	return pairs
}

// preparePairs is newPairs for who does something to a b before he starts it, or
// one after the other: only a runs.
func preparePairs(t *testing.T, o testbed.Options, confs ...testbed.DaemonConfig) []*pair {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	if o.Daemon == "" {
		if o.Daemon, err = daemon(); err != nil {
			t.Fatal(err)
		}
	}
	o.Nodes, o.Binary = 1+len(confs), bin
	bed := newBed(t, o)
	a := bed.Nodes[0]
	if err := a.StartContainerd(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if err := a.StartDaemon(t.Context(), testbed.DaemonConfig{}); err != nil {
		t.Fatal(err)
	}
	peer, err := a.Multiaddr(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var pairs []*pair
	for i, conf := range confs {
		conf.Peers = append(slices.Clone(conf.Peers), peer)
		pairs = append(pairs, &pair{Bed: bed, t: t, a: a, b: bed.Nodes[1+i], peer: peer, conf: conf})
	}
	return pairs
}

// start starts b's containerd and daemon.
func (p *pair) start() {
	p.t.Helper()
	p.must(p.b.StartContainerd(p.t.Context(), ""))
	p.must(p.b.StartDaemon(p.t.Context(), p.conf))
}

// in is the pair for the use of a subtest.
func (p *pair) in(t *testing.T) *pair {
	q := *p
	q.t = t
	return &q
}

func (p *pair) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// push puts a test image into containerd on node a, and from there into IPFS.
func (p *pair) push(im *image.Image, args ...string) (cid string) {
	p.t.Helper()
	p.must(p.a.Import(p.t.Context(), im))
	cid, err := p.a.Push(p.t.Context(), im.Name, args...)
	p.must(err)
	return cid
}

// restart ends b's daemon and starts it again.
func (p *pair) restart() {
	p.t.Helper()
	p.must(p.b.StopDaemon())
	p.must(p.b.StartDaemon(p.t.Context(), p.conf))
}

// received is what b's link has received since the beginning.
func (p *pair) received() int64 {
	p.t.Helper()
	t, err := p.b.Namespace.Traffic()
	p.must(err)
	return t.Received
}

// lazyMounts are the trees that are mounted on a node, by either mode.
func lazyMounts(t *testing.T, n *testbed.Node) (trees []string) {
	t.Helper()
	mounts, err := testbed.Mounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		if strings.HasPrefix(m.Point, filepath.Join(n.DaemonRoot(), "trees")+"/") {
			trees = append(trees, m.Point)
		}
	}
	return trees
}

// logged tells whether a node's daemon logged a line with all of these in it.
func logged(t *testing.T, n *testbed.Node, parts ...string) bool {
	t.Helper()
	return countLogged(t, n, parts...) > 0
}

// countLogged counts the lines with all of these in them that a node's daemon
// logged.
func countLogged(t *testing.T, n *testbed.Node, parts ...string) (count int) {
	t.Helper()
	b, err := os.ReadFile(n.DaemonLog())
	if err != nil {
		t.Fatal(err)
	}
lines:
	for line := range strings.Lines(string(b)) {
		for _, p := range parts {
			if !strings.Contains(line, p) {
				continue lines
			}
		}
		count++
	}
	return count
}

// edited pushes, on node a, an image like the one at root but with its layers'
// descriptors changed by edit.
func (p *pair) edited(root string, edit func(i int, l *ocispec.Descriptor)) string {
	p.t.Helper()
	ctx := p.t.Context()
	client, err := kubo.New("/unix" + filepath.Join(p.a.Dir, "api.sock"))
	p.must(err)
	defer client.Close()
	var target ocispec.Descriptor
	p.getJSON(client, root, &target)
	var manifest ocispec.Manifest
	p.getJSON(client, cidOf(target), &manifest)
	if len(manifest.Layers) == 0 {
		p.t.Fatalf("%s is no manifest with layers", target.MediaType)
	}
	for i := range manifest.Layers {
		edit(i, &manifest.Layers[i])
	}
	put := func(v any) (string, []byte) {
		data, err := json.Marshal(v)
		p.must(err)
		var c cid.Cid
		p.must(client.ImportCAR(ctx, nil, func(put ipfs.PutFunc) (err error) {
			c, _, err = importer.File(ctx, strings.NewReader(string(data)), put)
			return err
		}))
		return c.String(), data
	}
	c, data := put(manifest)
	target.Digest, target.Size, target.URLs = digest.FromBytes(data), int64(len(data)), []string{"ipfs://" + c}
	c, _ = put(target)
	return c
}

func cidOf(d ocispec.Descriptor) string {
	for _, u := range d.URLs {
		if c, ok := strings.CutPrefix(u, "ipfs://"); ok {
			return c
		}
	}
	return ""
}

func (p *pair) getJSON(client *kubo.Client, cid string, v any) {
	p.t.Helper()
	r, err := client.Cat(p.t.Context(), cid, 0, -1)
	p.must(err)
	defer r.Close()
	data, err := io.ReadAll(r)
	p.must(err)
	p.must(json.Unmarshal(data, v))
}
