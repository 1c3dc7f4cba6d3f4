package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/agent"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/benchout"
)

const (
	swarmSeeder = 0  // the first node of the bed
	maxTries    = 10 // of a node
)

// swarm has many nodes fetch one layer at the same moment, from a seeder and
// from each other; then again with the seeder gone before they have it all.
func swarm(ctx context.Context, b *bench) error {
	if err := b.Net.SetRate(b.sizes.swarmBits); err != nil {
		return err
	}
	alone, err := b.together(ctx, 1, nil)
	if err != nil {
		return fmt.Errorf("one node alone: %w", err)
	}
	nodes := b.sizes.swarmNodes
	all, err := b.together(ctx, nodes, nil)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("swarm-%d", nodes)
	if all.lack != "" {
		b.out.Logf("%s: a node gave up and tried again: %s", name, all.lack)
	}
	layer := float64(b.sizes.layer) / megabyte
	err = errors.Join(
		b.out.Add(benchout.Figure{
			Name: name + "-seeder-sent", Value: float64(all.sent) / megabyte, Unit: "MB",
			Reference: "the layer", ReferenceValue: layer, Bar: benchout.AtMost(2),
		}),
		b.out.Add(benchout.Figure{
			Name: name + "-last-done", Value: all.last.Seconds(), Unit: "s",
			Reference: "one node alone", ReferenceValue: alone.last.Seconds(), Bar: benchout.AtMost(2),
		}),
	)
	if err != nil {
		return err
	}
	return errors.Join(
		b.without(ctx, name+"-seeder-cut-at-half", seederGone{
			when: func(p progress) bool { return p.held >= p.leaves*len(p.nodes)/2 },
			take: func(*agent.Agent) error { return b.Net.Cut(swarmSeeder, true) },
		}),
		b.Net.Cut(swarmSeeder, false),
		b.without(ctx, name+"-seeder-killed-when-all-out", seederGone{
			when: func(p progress) bool { return p.distinct == p.leaves },
			take: (*agent.Agent).Kill,
		}),
	)
}

// seederGone says when the seeder is taken away, and how.
type seederGone struct {
	when func(progress) bool
	take func(seeder *agent.Agent) error
}

// without measures whether every node ends with every leaf that exists outside
// of a seeder that went away.
func (b *bench) without(ctx context.Context, name string, gone seederGone) error {
	r, err := b.together(ctx, b.sizes.swarmNodes, &gone)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if r.gone == nil {
		return fmt.Errorf("%s: the seeder was not taken away", name)
	}
	end := r.end
	fewest := end.leaves
	whole := 0
	for _, held := range end.nodes {
		fewest = min(fewest, held.Count())
		if held.Count() == end.leaves {
			whole++
		}
	}
	b.out.Logf("%s: the seeder went when the nodes held %d leaves, %d different ones of %d; %d different ones came to exist outside of it; %d of %d nodes have the whole layer, the last one after %.1f s",
		name, r.gone.held, r.gone.distinct, end.leaves, end.distinct, whole, len(end.nodes), r.last.Seconds())
	if r.lack != "" {
		b.out.Logf("%s: a node says: %s", name, r.lack)
	}
	return b.out.Add(benchout.Figure{
		Name: name, Value: float64(fewest), Unit: "leaves",
		Reference: "all that exist", ReferenceValue: float64(end.distinct), Bar: benchout.AtLeast(1),
	})
}

// progress is who holds what, at one moment.
type progress struct {
	leaves   int          // of the layer
	nodes    []agent.Bits // leaves that each node holds
	held     int          // by all nodes, the same leaf each time
	distinct int          // leaves that any node holds
}

func newProgress(leaves int, nodes []agent.Bits) progress {
	p := progress{leaves: leaves, nodes: nodes}
	var union agent.Bits
	for _, bits := range nodes {
		p.held += bits.Count()
		union = union.Join(bits)
	}
	p.distinct = union.Count()
	return p
}

// result is how a swarm went.
type result struct {
	last time.Duration // until the last node was done
	sent int64         // by the seeder's link, from the beginning to the end
	gone *progress     // when the seeder went; nil: it did not
	lack string        // why a node has not all, in its own words
	end  progress
}

// members are the agents of a swarm: the seeder is the first.
type members struct {
	agents []*agent.Agent
	peers  []int
}

// together starts a seeder and so many nodes, all new, has the nodes fetch one
// layer at once, and ends them all.
func (b *bench) together(ctx context.Context, nodes int, gone *seederGone) (r result, err error) {
	m, err := b.gather(ctx, nodes)
	defer func() {
		err = errors.Join(err, b.end())
		for node := range nodes + 1 {
			err = errors.Join(err, os.RemoveAll(b.dir(node, "swarm")))
		}
	}()
	if err != nil {
		return r, err
	}
	c := b.content(b.sizes.layer, layerLeaf)
	seeded, err := m.agents[0].Seed(ctx, agent.Seed{Peer: m.peers[0], Content: c})
	if err != nil {
		return r, err
	}
	before, err := b.Nodes[swarmSeeder].Namespace.Traffic()
	if err != nil {
		return r, err
	}
	s := &swarming{content: c, root: seeded.Root, members: m, gone: gone, nodes: make([]agent.Bits, nodes)}
	if r, err = s.run(ctx); err != nil {
		return r, err
	}
	after, err := b.Nodes[swarmSeeder].Namespace.Traffic()
	r.sent = after.Sub(before).Sent
	return r, errors.Join(err, s.verify(ctx))
}

// gather starts the members, each with all others in its list of peers, and
// waits until all are connected.
func (b *bench) gather(ctx context.Context, nodes int) (m members, err error) {
	var addrs []string
	for node := range nodes + 1 {
		a, err := b.start(ctx, node, "swarm")
		if err != nil {
			return m, err
		}
		m.agents = append(m.agents, a)
		id, err := a.Identify(ctx, agent.Identify{Dir: b.dir(node, "swarm")})
		if err != nil {
			return m, err
		}
		addrs = append(addrs, b.listen(node, port)+"/p2p/"+id.ID)
	}
	for node, a := range m.agents {
		opened, err := a.Open(ctx, agent.Open{
			Kind: agent.Node, Dir: b.dir(node, "swarm"), Listen: []string{b.listen(node, port)}, Peers: addrs, FetchTimeout: fetchTimeout,
		})
		if err != nil {
			return m, err
		}
		m.peers = append(m.peers, opened.Peer)
	}
	for i, a := range m.agents {
		if err := a.Connect(ctx, agent.Connect{Peer: m.peers[i], Count: nodes}); err != nil {
			return m, err
		}
	}
	return m, nil
}

// swarming is a swarm under way.
type swarming struct {
	content agent.Content
	root    string
	members members
	gone    *seederGone

	mu    sync.Mutex
	nodes []agent.Bits
	went  *progress
	lack  string
}

func (s *swarming) run(ctx context.Context) (r result, err error) {
	begin := time.Now()
	var last time.Duration
	g, gctx := errgroup.WithContext(ctx)
	for i := range s.nodes {
		g.Go(func() error {
			got, err := s.fetch(gctx, i)
			if err != nil {
				return fmt.Errorf("node %d: %w", i, err)
			}
			took := time.Since(begin)
			s.saw(i, got.Leaves)
			s.mu.Lock()
			defer s.mu.Unlock()
			last = max(last, took)
			s.lack = cmp.Or(s.lack, got.Unavailable)
			return nil
		})
	}
	err = g.Wait()
	return result{last: last, gone: s.went, lack: s.lack, end: newProgress(s.content.Leaves(), s.nodes)}, err
}

// fetch has a node fetch the layer. One that gives up although the seeder is
// there tries again, as whoever reads would.
func (s *swarming) fetch(ctx context.Context, node int) (got agent.Fetched, err error) {
	for range maxTries {
		got, err = s.members.agents[node+1].Fetch(ctx, agent.Fetch{
			Peer: s.members.peers[node+1], Root: s.root, Size: s.content.Size, Mode: agent.Bulk, N: -1, Progress: s.gone != nil,
		}, func(p agent.Progress) { s.saw(node, p.Leaves) })
		if err != nil || got.Missing == 0 || s.gone != nil {
			return got, err
		}
		s.mu.Lock()
		s.lack = cmp.Or(s.lack, got.Unavailable)
		s.mu.Unlock()
	}
	return got, fmt.Errorf("%d blocks are missing: %s", got.Missing, got.Unavailable)
}

// saw notes what a node holds, and takes the seeder away once it is time.
func (s *swarming) saw(node int, leaves agent.Bits) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes[node] = leaves
	if s.went != nil || s.gone == nil {
		return
	}
	now := newProgress(s.content.Leaves(), s.nodes)
	if !s.gone.when(now) {
		return
	}
	now.nodes = nil // they go on
	s.went = &now
	if err := s.gone.take(s.members.agents[0]); err != nil {
		// The seeder goes on serving: the result shows it.
		s.went = nil
	}
}

// verify has every node that should have the whole layer read it.
func (s *swarming) verify(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(2) // it takes a processor each
	for i, held := range s.nodes {
		if held.Count() == s.content.Leaves() {
			g.Go(func() error {
				return s.members.agents[i+1].Verify(ctx, agent.Verify{Peer: s.members.peers[i+1], Root: s.root, Content: s.content})
			})
		}
	}
	return g.Wait()
}
