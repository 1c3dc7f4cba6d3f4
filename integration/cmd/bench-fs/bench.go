package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/agent"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/benchout"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/image"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20

	megabyte = 1e6
)

// endLimit is for everything that a scenario has made to be taken away again.
const endLimit = 3 * time.Minute

// sizes are how much of everything.
type sizes struct {
	rounds     int   // of what is measured in turn
	bigFiles   int   // each of bigFile bytes: one for each cold round
	bigFile    int64 // bytes
	random     int64 // bytes read in random blocks
	smallFiles int
	entries    int // names of a large image
	prepares   int // of one more container
	layers     int
	stats      int // rounds of them
	farFiles   int
	images     int // that are mounted at once
	idle       time.Duration
	sharedBig  int // files of several chunks that two images share
	sharedTiny int
	crowdFile  int64 // bytes of the file that all readers want
	crowd      int   // readers
}

var (
	full = sizes{
		rounds: 5, bigFiles: 3, bigFile: 200e6, random: 64 * mib,
		smallFiles: 6000, entries: 100_000, prepares: 21, layers: 100, stats: 21, farFiles: 15,
		images: 20, idle: 20 * time.Second, sharedBig: 12, sharedTiny: 1000, crowdFile: 64 * mib, crowd: 32,
	}
	brief = sizes{
		rounds: 1, bigFiles: 1, bigFile: 10e6, random: 2 * mib,
		smallFiles: 200, entries: 2000, prepares: 2, layers: 100, stats: 1, farFiles: 2,
		images: 2, idle: time.Second, sharedBig: 2, sharedTiny: 20, crowdFile: 8 * mib, crowd: 32,
	}
)

// mode is how the daemon mounts lazy layers.
type mode string

const (
	autoMode   mode = "auto" // nothing is said: as it chooses by itself
	kernelMode mode = "kernel"
	fuseMode   mode = "fuse"
)

// bars are what a mode is held to, as ratios to the native speed.
type bars struct{ read, smallWarm, smallCold, walkCold, walkAgain float64 }

var barsOf = map[mode]bars{
	autoMode:   kernelBars,
	kernelMode: kernelBars,
	fuseMode:   {read: 0.9, smallWarm: 0.3, smallCold: 0.3, walkCold: 0.15, walkAgain: 0.8},
}

var kernelBars = bars{read: 0.95, smallWarm: 0.85, smallCold: 0.7, walkCold: 0.5, walkAgain: 0.9}

// bench is a scenario under way.
type bench struct {
	*testbed.Bed
	out    *benchout.Writer
	sizes  sizes
	mode   mode
	bars   bars
	binary string
	store  *image.Store

	seeder, node, middle *testbed.Node

	conf   testbed.DaemonConfig // of the node's daemon
	client *containerd.Client   // of the node's containerd
	roots  []*root              // that are mounted
	ends   []func() error       // of all else, the last one first
}

// add writes a figure under the name of the mode.
func (b *bench) add(f benchout.Figure) error {
	f.Name = string(b.mode) + "-" + f.Name
	return b.out.Add(f)
}

// end takes away what the scenario has made by itself.
func (b *bench) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	var errs []error
	for len(b.roots) > 0 {
		errs = append(errs, b.remove(ctx, b.roots[len(b.roots)-1]))
	}
	for _, end := range slices.Backward(b.ends) {
		errs = append(errs, end())
	}
	if b.client != nil {
		errs = append(errs, b.collect(ctx), b.client.Close())
	}
	return errors.Join(errs...)
}

// daemonConfig is the configuration that all daemons have in common.
func (b *bench) daemonConfig(peers ...string) testbed.DaemonConfig {
	// By lists: a swarm key encrypts everything once more.
	c := testbed.DaemonConfig{AllowList: true, Peers: peers}
	if b.mode != autoMode {
		c.Mode = string(b.mode)
	}
	return c
}

// startDaemons starts the seeder, which lets in the node and the peers whose
// directories are in also, and the node with its containerd. announce, unless
// empty, is the multiaddr at which the seeder is to be found in place of its
// own. It gives the seeder's address.
func (b *bench) startDaemons(ctx context.Context, announce string, also ...string) (addr string, err error) {
	ids, err := b.identify(ctx, append(also, filepath.Join(b.node.DaemonRoot(), "ipfs"))...)
	if err != nil {
		return "", err
	}
	conf := b.daemonConfig(ids...)
	if announce != "" {
		conf.Announce = []string{announce}
	}
	if err := b.seeder.StartDaemon(ctx, conf); err != nil {
		return "", err
	}
	if addr, err = b.seeder.Multiaddr(ctx); err != nil {
		return "", err
	}
	if announce != "" {
		_, id, _ := strings.Cut(addr, "/p2p/")
		addr = announce + "/p2p/" + id
	}
	b.conf = b.daemonConfig(addr)
	if err := b.node.StartDaemon(ctx, b.conf); err != nil {
		return "", err
	}
	if err := b.node.StartContainerd(ctx, ""); err != nil {
		return "", err
	}
	b.client, err = containerd.New(b.node.ContainerdSocket(), containerd.WithDefaultNamespace(b.node.ContainerdNamespace()))
	return addr, err
}

// identify gives, as entries of a list of peers, the ids that nodes with these
// directories will have.
func (b *bench) identify(ctx context.Context, dirs ...string) (ids []string, err error) {
	a, err := agent.Start(ctx, b.seeder, "identify")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	for _, dir := range dirs {
		id, err := a.Identify(ctx, agent.Identify{Dir: dir})
		if err != nil {
			return nil, err
		}
		ids = append(ids, "/p2p/"+id.ID)
	}
	return ids, nil
}

// pushed is a test image that the seeder has, lazy on the node and not
// unpacked anywhere.
type pushed struct {
	*image.Image
	cid    string
	layers []pushedLayer
}

// pushedLayer is a layer as it was pushed, the lowest first.
type pushedLayer struct {
	CID  string `json:"cid"`
	Size int64  `json:"size"` // bytes
	Lazy bool   `json:"lazy"`
	Why  string `json:"why"` // it is not
}

// pull builds a test image if need be, pushes it on the seeder and pulls it on
// the node.
func (b *bench) pull(ctx context.Context, r image.Recipe) (p pushed, err error) {
	if p.Image, err = b.store.Get(ctx, r); err != nil {
		return p, err
	}
	if p.cid, err = b.seeder.Push(ctx, "oci:"+p.Dir); err != nil {
		return p, err
	}
	text, err := b.seeder.Stargz(ctx, "inspect", "--json", p.cid)
	if err != nil {
		return p, err
	}
	var report struct {
		Manifests []struct {
			Layers []pushedLayer `json:"layers"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal([]byte(text), &report); err != nil {
		return p, fmt.Errorf("inspect %s: %w", p.cid, err)
	}
	for _, m := range report.Manifests {
		p.layers = append(p.layers, m.Layers...)
	}
	if len(p.layers) != len(p.Layers) {
		return p, fmt.Errorf("image %s has %d layers, and %d once it is pushed", p.Name, len(p.Layers), len(p.layers))
	}
	for i, l := range p.layers {
		if !l.Lazy {
			return p, fmt.Errorf("image %s: layer %d is not lazy: %s", p.Name, i, l.Why)
		}
	}
	if err := b.node.Pull(ctx, p.cid); err != nil {
		return p, err
	}
	log, err := os.ReadFile(b.node.DaemonLog())
	if err == nil && strings.Contains(string(log), "cannot be lazy") {
		err = fmt.Errorf("image %s: not all layers are lazy on the node: see its log", p.Name)
	}
	return p, err
}

// unpack has the node's containerd unpack a test image natively.
func (b *bench) unpack(ctx context.Context, im *image.Image) error {
	if err := b.node.Import(ctx, im); err != nil {
		return err
	}
	img, err := b.client.GetImage(ctx, im.Name)
	if err != nil {
		return err
	}
	return img.Unpack(ctx, native)
}

// restart ends the node's daemon, has nothing done while it is down, and starts
// it again, until containerd has found it.
func (b *bench) restart(ctx context.Context, down func() error) error {
	if err := b.node.StopDaemon(); err != nil {
		return err
	}
	if err := down(); err != nil {
		return err
	}
	if err := b.node.StartDaemon(ctx, b.conf); err != nil {
		return err
	}
	return b.found(ctx)
}
