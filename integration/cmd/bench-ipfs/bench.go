package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/agent"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/benchout"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20

	megabyte = 1e6

	// layerLeaf is the size of leaves where no figure is about another one:
	// about what our importer makes of layers.
	layerLeaf = 64 * kib

	// port is where agents' peers listen in namespaces of their own.
	port = 4001

	// fetchTimeout is the patience of nodes: longer than any benchmark is
	// meant to wait, for a machine that is busy otherwise.
	fetchTimeout = 30 * time.Second
)

// sizes are how much of everything.
type sizes struct {
	singles   int   // blocks fetched one at a time
	bulk      int64 // bytes of one bulk transfer on loopback
	rounds    int   // of them
	link      int64 // bytes over a slow link
	ranges    int   // reads over a long one
	manyLeaf  int64
	manyCount int // blocks
	manyPeers int

	swarmNodes int
	swarmBits  int64 // bits a second, of each node's link
	layer      int64 // bytes that they fetch
}

var (
	full = sizes{
		singles: 200, bulk: 96 * mib, rounds: 3, link: 50e6, ranges: 10,
		manyLeaf: 16 * kib, manyCount: 10_000, manyPeers: 50,
		swarmNodes: 8, swarmBits: 200e6, layer: 200e6,
	}
	small = sizes{
		singles: 10, bulk: 4 * mib, rounds: 1, link: 4e6, ranges: 2,
		manyLeaf: 4 * kib, manyCount: 500, manyPeers: 10,
		swarmNodes: 3, swarmBits: 50e6, layer: 12e6,
	}
)

// bench is a scenario under way.
type bench struct {
	*testbed.Bed
	out   *benchout.Writer
	sizes sizes

	agents []*agent.Agent
	seeds  uint64 // contents made so far
}

// start starts an agent on a node; it ends with the scenario at the latest.
func (b *bench) start(ctx context.Context, node int, name string) (*agent.Agent, error) {
	a, err := agent.Start(ctx, b.Nodes[node], name)
	if err == nil {
		b.agents = append(b.agents, a)
	}
	return a, err
}

// end ends all agents.
func (b *bench) end() error {
	errs := make(chan error)
	for _, a := range b.agents {
		go func() { errs <- a.Close() }()
	}
	var all []error
	for range b.agents {
		all = append(all, <-errs)
	}
	b.agents = nil
	return errors.Join(all...)
}

// content is new content: nobody has it.
func (b *bench) content(size, leaf int64) agent.Content {
	b.seeds++
	return agent.Content{Seed: b.seeds, Size: size, Leaf: leaf}
}

// dir is a folder on a node for a peer.
func (b *bench) dir(node int, name string) string { return filepath.Join(b.Nodes[node].Dir, name) }

// listen is a multiaddr of a node.
func (b *bench) listen(node, port int) string {
	return fmt.Sprintf("/ip4/%s/tcp/%d", b.Nodes[node].Namespace.Addr, port)
}

// pair is two peers of one kind: one holds, the other one reads.
type pair struct {
	seeder, reader   *agent.Agent
	seeding, reading int // peers
}

// pairUp opens a pair on two nodes, which may be one, and connects it. via,
// unless empty, is the multiaddr without /p2p that leads to the seeder.
func (b *bench) pairUp(ctx context.Context, kind agent.Kind, from, to int, via string) (p pair, err error) {
	name := string(kind)
	if p.seeder, err = b.start(ctx, from, "seed-"+name); err != nil {
		return p, err
	}
	if p.reader, err = b.start(ctx, to, "read-"+name); err != nil {
		return p, err
	}
	return p, b.connect(ctx, &p, kind, from, to, via)
}

func (b *bench) connect(ctx context.Context, p *pair, kind agent.Kind, from, to int, via string) error {
	seedDir, readDir := b.dir(from, "seed-"+string(kind)), b.dir(to, "read-"+string(kind))
	at := port
	if from == to {
		at = 0 // any: there is more than one pair
	}
	o := agent.Open{Kind: kind, Dir: seedDir, Listen: []string{b.listen(from, at)}}
	if kind == agent.Node {
		id, err := p.reader.Identify(ctx, agent.Identify{Dir: readDir})
		if err != nil {
			return err
		}
		o.Peers = []string{"/p2p/" + id.ID}
		if via != "" {
			o.Announce = []string{via}
		}
	}
	seeding, err := p.seeder.Open(ctx, o)
	if err != nil {
		return err
	}
	if len(seeding.Addrs) == 0 {
		return errors.New("the seeder cannot be dialed")
	}
	p.seeding = seeding.Peer
	reading, err := p.reader.Open(ctx, agent.Open{Kind: kind, Dir: readDir, Peers: seeding.Addrs[:1], FetchTimeout: fetchTimeout})
	if err != nil {
		return err
	}
	p.reading = reading.Peer
	return p.reader.Connect(ctx, agent.Connect{Peer: p.reading, Count: 1})
}

// fetch has the pair's reader fetch leaves of new content; all of them must
// arrive.
func (p pair) fetch(ctx context.Context, f agent.Fetch) (agent.Fetched, error) {
	f.Peer = p.reading
	got, err := p.reader.Fetch(ctx, f, nil)
	if err == nil && got.Missing > 0 {
		err = fmt.Errorf("%d blocks are missing: %s", got.Missing, got.Unavailable)
	}
	return got, err
}

// seed gives the pair's seeder content, and its reader the table of leaves.
func (p pair) seed(ctx context.Context, c agent.Content) (root string, err error) {
	s, err := p.seeder.Seed(ctx, agent.Seed{Peer: p.seeding, Content: c})
	if err != nil {
		return "", err
	}
	_, err = p.fetch(ctx, agent.Fetch{Root: s.Root, Size: c.Size})
	return s.Root, err
}

// cpu is what both of the pair have used up.
func (p pair) cpu(ctx context.Context) (time.Duration, error) {
	a, err := p.seeder.Usage(ctx)
	if err != nil {
		return 0, err
	}
	b, err := p.reader.Usage(ctx)
	return a.CPU + b.CPU, err
}

// speed is in MB/s.
func speed(bytes int64, took time.Duration) float64 {
	return float64(bytes) / megabyte / took.Seconds()
}

// milliseconds is a duration for figures.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
