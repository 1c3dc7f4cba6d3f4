package serve_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ipfs-stargz/ipfs-stargz/image"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/node"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store"
	"github.com/ipfs-stargz/ipfs-stargz/serve"
)

// picture is an image of one layer, in memory.
type picture struct {
	root   cid.Cid
	files  []cid.Cid // blobs and root
	blocks []blocks.Block
}

func (p *picture) add(t testing.TB, data []byte) cid.Cid {
	t.Helper()
	c, _, err := importer.File(t.Context(), bytes.NewReader(data), func(_ context.Context, b blocks.Block) error {
		p.blocks = append(p.blocks, b)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	p.files = append(p.files, c)
	return c
}

func (p *picture) blob(t testing.TB, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	data, ok := v.([]byte)
	if !ok {
		var err error
		if data, err = json.Marshal(v); err != nil {
			t.Fatal(err)
		}
	}
	return ocispec.Descriptor{
		MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data)),
		URLs: []string{"ipfs://" + p.add(t, data).String()},
	}
}

// makeImage makes an image whose layer has a size.
func makeImage(t testing.TB, seed uint64, layer int) *picture {
	t.Helper()
	p := &picture{}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	m.Layers = []ocispec.Descriptor{p.blob(t, ocispec.MediaTypeImageLayerGzip, blockstest.Random(t, seed, layer).RawData())}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	config.RootFS.DiffIDs = []digest.Digest{digest.FromString(fmt.Sprint(seed))}
	m.Config = p.blob(t, ocispec.MediaTypeImageConfig, config)
	root, err := json.Marshal(p.blob(t, ocispec.MediaTypeImageManifest, m))
	if err != nil {
		t.Fatal(err)
	}
	p.root = p.add(t, root)
	return p
}

// push gives an image to a daemon as the push command does: its blobs first,
// not pinned, then the root.
func (p *picture) push(t testing.TB, d *daemon) error {
	t.Helper()
	put := func(roots []cid.Cid, bs ...blocks.Block) error {
		return d.client.ImportCAR(t.Context(), roots, func(put ipfs.PutFunc) error {
			for _, b := range bs {
				if err := put(t.Context(), b); err != nil {
					return err
				}
			}
			return nil
		})
	}
	last := len(p.blocks) - 1
	if err := put(nil, p.blocks[:last]...); err != nil {
		return err
	}
	return put(append([]cid.Cid{p.root}, p.files...), p.blocks[last])
}

// held tells how many blocks of an image a daemon holds.
func (p *picture) held(t testing.TB, d *daemon) (n int) {
	t.Helper()
	for _, b := range p.blocks {
		ok, err := d.Has(t.Context(), b.Cid())
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			n++
		}
	}
	return n
}

// connected is two daemons that know each other.
func connected(t *testing.T, budget int64) (a, b *daemon) {
	t.Helper()
	open := func(budget int64, peers ...string) *daemon {
		d := &daemon{dir: t.TempDir()}
		var err error
		d.Node, err = node.Open(t.Context(), node.Config{
			Dir: d.dir, Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Peers: peers, SwarmKeyFile: swarmKey(t),
			FetchTimeout: time.Minute, Store: store.Options{Budget: budget},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
		d.addr, d.client = listen(t, serve.NewHandler(serve.Config{
			Store: d, Pins: d.Local(), Repo: d.Local(), Parts: image.Parts, Swarm: d,
		}))
		return d
	}
	a = open(0)
	return a, open(budget, a.Addrs()...)
}

func swarmKey(t *testing.T) string {
	t.Helper()
	path := t.TempDir() + "/swarm.key"
	if err := os.WriteFile(path, []byte("/key/swarm/psk/1.0.0/\n/base16/\n"+strings.Repeat("5a", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// collect runs repo/gc and returns how many blocks went.
func (d *daemon) collect(t *testing.T, target int64) (n int) {
	t.Helper()
	err := d.client.GC(t.Context(), target, func(_ cid.Cid, size int64) {
		if size <= 0 {
			t.Errorf("a block of %d bytes was removed", size)
		}
		n++
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// An image that was pushed is one pin, whatever was imported with it; gc leaves
// it, and takes it once it is unpinned.
func TestPushedIsPinned(t *testing.T) {
	d := start(t)
	p := makeImage(t, 1, 3<<20)
	if err := p.push(t, d); err != nil {
		t.Fatal(err)
	}
	loose := blockstest.Random(t, 50, 1000)
	if err := d.Put(t.Context(), loose); err != nil {
		t.Fatal(err)
	}
	if err := d.client.Pin(t.Context(), p.root, "python:3.13", nil); err != nil {
		t.Fatal(err)
	}
	list, err := d.client.Pins(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatalf("pins: %+v, %v; want the image alone", list, err)
	}
	if got := list[0]; got.CID != p.root || got.Name != "python:3.13" || got.Size < 3<<20 || got.Held != got.Size ||
		got.Blocks != len(p.blocks) || got.Time.IsZero() || got.Error != "" {
		t.Errorf("%+v", got)
	}
	if st, err := d.client.RepoStat(t.Context()); err != nil || st.NumObjects != int64(len(p.blocks)+1) || st.StorageMax != math.MaxUint64 ||
		st.RepoSize != list[0].Size+1000 {
		t.Errorf("%+v, %v", st, err)
	}
	if n := d.collect(t, 0); n != 0 { // the loose one is leased
		t.Errorf("%d blocks went", n)
	}
	// Pushed again: the same pin, and it keeps its name.
	if err := p.push(t, d); err != nil {
		t.Fatal(err)
	}
	if list, err := d.client.Pins(t.Context()); err != nil || len(list) != 1 || list[0].Name != "python:3.13" {
		t.Errorf("pushed again: %+v, %v", list, err)
	}
	if err := d.client.Unpin(t.Context(), p.root); err != nil {
		t.Fatal(err)
	}
	if err := d.client.Unpin(t.Context(), p.root); err == nil || !strings.Contains(err.Error(), "not pinned") {
		t.Errorf("unpinned twice: %v", err)
	}
	if n := d.collect(t, 2<<20); n < 3 || n > len(p.blocks)-3 {
		t.Errorf("down to 2 MiB: %d blocks went", n)
	}
	d.collect(t, 0)
	if n := p.held(t, d); n != 0 {
		t.Errorf("%d blocks are left", n)
	}
}

// pin fetches what is missing, of all parts, and says how far it is.
func TestPinFetches(t *testing.T) {
	a, b := connected(t, 0)
	p := makeImage(t, 1, 20<<20)
	if err := p.push(t, a); err != nil {
		t.Fatal(err)
	}
	var bytes int64
	if err := b.client.Pin(t.Context(), p.root, "", func(_, n int64) { bytes = n }); err != nil {
		t.Fatal(err)
	}
	if n := p.held(t, b); n != len(p.blocks) {
		t.Errorf("%d of %d blocks are here", n, len(p.blocks))
	}
	if bytes < 20<<20 {
		t.Errorf("progress ended at %d bytes", bytes)
	}
	if n := b.collect(t, 0); n != 0 {
		t.Errorf("%d pinned blocks went", n)
	}
	// A damaged block is found missing when it is read, and fetched by pinning
	// again.
	blockstest.Damage(t, b.Local(), p.blocks[3].Cid())
	if _, err := b.Local().Get(t.Context(), p.blocks[3].Cid()); !ipld.IsNotFound(err) {
		t.Fatalf("a damaged block: %v", err)
	}
	if list, err := b.client.Pins(t.Context()); err != nil || list[0].Held >= list[0].Size {
		t.Errorf("%+v, %v: held as if nothing were damaged", list, err)
	}
	if err := b.client.Pin(t.Context(), p.root, "", nil); err != nil {
		t.Fatal(err)
	}
	if list, err := b.client.Pins(t.Context()); err != nil || list[0].Held != list[0].Size {
		t.Errorf("%+v, %v: not mended", list, err)
	}
}

// What cannot be had, or has no room, is not pinned, and the error says why.
func TestPinFails(t *testing.T) {
	a, b := connected(t, 5<<20)
	alone := start(t)
	big, half := makeImage(t, 1, 20<<20), makeImage(t, 2, 3<<20)
	if err := errors.Join(big.push(t, a), half.push(t, alone)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(alone.client.Unpin(t.Context(), half.root), alone.Local().DeleteBlock(t.Context(), half.blocks[3].Cid())); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		on   *daemon
		root cid.Cid
		want string
	}{
		"over the budget":    {b, big.root, "budget"},
		"a block is nowhere": {alone, half.root, half.blocks[3].Cid().String()},
		"nowhere":            {alone, blockstest.Random(t, 9, 10).Cid(), "unavailable"},
	} {
		err := tt.on.client.Pin(t.Context(), tt.root, "", nil)
		var e *kubo.Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		if list, err := tt.on.client.Pins(t.Context()); err != nil || len(list) != 0 {
			t.Errorf("%s: half pinned: %+v, %v", name, list, err)
		}
	}
	if err := big.push(t, b); err == nil || !strings.Contains(err.Error(), "ipfs.budget") {
		t.Errorf("a push over the budget: %v", err)
	}
	if st := b.Local().Stat(); st.Bytes > 5<<20 {
		t.Errorf("%d bytes are held, over the budget", st.Bytes)
	}
}

// Pushes and collections at once: every image that was pushed is whole.
func TestCollectDuringPush(t *testing.T) {
	d := start(t)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				if err := d.client.GC(t.Context(), 0, func(cid.Cid, int64) {}); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	var all []*picture
	for i := range 8 {
		p := makeImage(t, uint64(i), 2<<20)
		if err := p.push(t, d); err != nil {
			t.Errorf("push %d: %v", i, err)
		}
		all = append(all, p)
	}
	close(stop)
	<-done
	for i, p := range all {
		if n := p.held(t, d); n != len(p.blocks) {
			t.Errorf("image %d: %d of %d blocks", i, n, len(p.blocks))
		}
	}
}

// The answers have Kubo's shapes.
func TestPinAnswers(t *testing.T) {
	d := start(t)
	p := makeImage(t, 1, 1000)
	if err := p.push(t, d); err != nil {
		t.Fatal(err)
	}
	root, layer := p.root.String(), p.blocks[0].Cid().String()
	stray := blockstest.Random(t, 9, 10).Cid().String()
	for _, tt := range []struct {
		path   string
		args   url.Values
		status int
		want   string
	}{
		{"pin/ls", nil, 200, `{"Keys":{"` + root + `":{"Type":"recursive","Name":""}}}`},
		{"pin/ls", url.Values{"type": {"direct"}}, 200, `{"Keys":{}}`},
		{"pin/ls", url.Values{"type": {"mine"}}, 400, "type"},
		{"pin/ls", url.Values{"stream": {"true"}}, 200, `{"Cid":"` + root + `","Type":"recursive","Name":""}`},
		{"pin/ls", url.Values{"arg": {layer}}, 200, `"Type":"indirect through ` + root + `"`},
		{"pin/ls", url.Values{"arg": {stray}}, 500, "not pinned"},
		{"pin/add", nil, 400, "arg"},
		{"pin/add", url.Values{"arg": {root}, "recursive": {"false"}}, 400, "recursive"},
		{"pin/add", url.Values{"arg": {root}, "name": {strings.Repeat("x", 256)}}, 400, "name"},
		{"pin/add", url.Values{"arg": {root, layer}}, 200, `{"Pins":["` + root + `","` + layer + `"]}`},
		{"pin/rm", url.Values{"arg": {layer}}, 200, `{"Pins":["` + layer + `"]}`},
		{"pin/rm", url.Values{"arg": {stray}}, 500, "not pinned or pinned indirectly"},
		{"repo/gc", url.Values{"to": {"-1"}}, 400, "to"},
		{"repo/gc", url.Values{"silent": {"true"}}, 200, ""},
		{"repo/stat", nil, 200, `"NumObjects":4`},
	} {
		resp, text := d.post(t, "/api/v0/"+tt.path+"?"+tt.args.Encode(), nil)
		if resp.StatusCode != tt.status || !strings.Contains(text, tt.want) {
			t.Errorf("%s %v: %s %s, want %d %s", tt.path, tt.args, resp.Status, text, tt.status, tt.want)
		}
	}
}

// dag/export sends all of an image, and says when it cannot.
func TestDagExport(t *testing.T) {
	d := start(t)
	p := makeImage(t, 1, 3<<20)
	if err := p.push(t, d); err != nil {
		t.Fatal(err)
	}
	resp, text := d.post(t, "/api/v0/dag/export?arg="+p.root.String(), nil)
	if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/vnd.ipld.car") {
		t.Fatalf("%s %v", resp.Status, resp.Header)
	}
	other := start(t)
	if resp, text := other.postForm(t, "/api/v0/dag/import", []byte(text)); resp.StatusCode != http.StatusOK || !strings.Contains(text, `"PinErrorMsg":""`) {
		t.Errorf("imported again: %s %s", resp.Status, text)
	}
	if n := p.held(t, other); n != len(p.blocks) {
		t.Errorf("%d of %d blocks came along", n, len(p.blocks))
	}
	if resp, text := d.post(t, "/api/v0/dag/export?arg="+blockstest.Random(t, 9, 10).Cid().String(), nil); resp.StatusCode != http.StatusInternalServerError {
		t.Errorf("what is nowhere: %s %s", resp.Status, text)
	}
	if resp, _ := d.post(t, "/api/v0/dag/export", nil); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("without arg: %s", resp.Status)
	}
}
