package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/agent"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/benchout"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/capture"
)

const (
	manyHolders = 0 // node of the bed
	manyReader  = 1
	manyCopies  = 3 // of each block, among the peers
)

// many has one reader fetch a great many blocks that are spread over many
// peers: what that takes of memory, of messages and of the link.
func many(ctx context.Context, b *bench) error {
	ours, err := b.fromMany(ctx, agent.Node)
	if err != nil {
		return err
	}
	if err := b.end(); err != nil {
		return err
	}
	tuned, err := b.fromMany(ctx, agent.BitswapTuned)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("many-%d-peers-%d-blocks", b.sizes.manyPeers, b.sizes.manyCount)
	const reference = "bitswap, tuned"
	return errors.Join(
		b.out.Add(benchout.Figure{
			Name: name + "-heap-peak", Value: ours.heap / megabyte, Unit: "MB",
			Reference: reference, ReferenceValue: tuned.heap / megabyte, Bar: benchout.AtMost(1),
		}),
		b.out.Add(benchout.Figure{
			Name: name + "-messages-per-block", Value: ours.messages, Unit: "packets",
			Reference: reference, ReferenceValue: tuned.messages, Bar: benchout.AtMost(1),
		}),
		b.out.Add(benchout.Figure{
			Name: name + "-sent-per-block", Value: ours.sent, Unit: "bytes",
			Reference: reference, ReferenceValue: tuned.sent, Bar: benchout.AtMost(1),
		}),
		b.out.Add(benchout.Figure{
			Name: name + "-received", Value: ours.received / megabyte, Unit: "MB",
			Reference: "the blocks", ReferenceValue: float64(b.sizes.manyLeaf*int64(b.sizes.manyCount)) / megabyte, Bar: benchout.AtMost(1.1),
		}),
		b.out.Add(benchout.Figure{
			Name: name + "-speed", Value: ours.speed, Unit: "MB/s",
			Reference: reference, ReferenceValue: tuned.speed, Bar: benchout.AtLeast(1),
		}),
	)
}

// cost is what the reader took.
type cost struct {
	heap     float64 // bytes at the peak, over those before
	messages float64 // packets with data that it sent, for each block
	sent     float64 // bytes of data that it sent, for each block
	received float64 // bytes on the link
	speed    float64 // MB/s
}

// fromMany measures one kind of peers.
func (b *bench) fromMany(ctx context.Context, kind agent.Kind) (c cost, err error) {
	reader, err := b.start(ctx, manyReader, "reader")
	if err != nil {
		return c, err
	}
	open := agent.Open{Kind: kind, Dir: b.dir(manyReader, string(kind)), FetchTimeout: fetchTimeout}
	id := ""
	if kind == agent.Node {
		got, err := reader.Identify(ctx, agent.Identify{Dir: open.Dir})
		if err != nil {
			return c, err
		}
		id = got.ID
	}
	content := b.content(b.sizes.manyLeaf*int64(b.sizes.manyCount), b.sizes.manyLeaf)
	root, addrs, err := b.holders(ctx, kind, id, content)
	if err != nil {
		return c, err
	}
	open.Peers = addrs
	opened, err := reader.Open(ctx, open)
	if err != nil {
		return c, err
	}
	if err := reader.Connect(ctx, agent.Connect{Peer: opened.Peer, Count: len(addrs)}); err != nil {
		return c, err
	}
	// The greetings of so many connections are over before it is counted.
	f := agent.Fetch{Peer: opened.Peer, Root: root, Size: content.Size, Mode: agent.Bulk}
	if _, err := reader.Fetch(ctx, f, nil); err != nil {
		return c, err
	}
	link := b.Nodes[manyReader].Namespace
	packets, err := capture.Start(link)
	if err != nil {
		return c, err
	}
	f.N = -1
	got, err := reader.Fetch(ctx, f, nil)
	if err == nil && got.Missing > 0 {
		err = fmt.Errorf("%d blocks are missing: %s", got.Missing, got.Unavailable)
	}
	dropped, dropErr := packets.Dropped()
	if dropped > 0 {
		b.out.Logf("%s: %d packets went by uncounted", kind, dropped)
	}
	c = costOf(packets.Flows(), float64(b.sizes.manyCount))
	c.heap = float64(got.HeapPeak - got.HeapBefore)
	c.speed = speed(got.Bytes, got.Took)
	return c, errors.Join(err, dropErr, packets.Close())
}

func costOf(flows map[capture.Flow]capture.Count, blocks float64) (c cost) {
	for f, n := range flows {
		switch {
		case !f.Sent:
			c.received += float64(n.Bytes)
		case f.TCP():
			c.messages += float64(n.PayloadPackets) / blocks
			c.sent += float64(n.PayloadBytes) / blocks
		}
	}
	return c
}

// holders opens the peers that hold the content among them, in one process.
func (b *bench) holders(ctx context.Context, kind agent.Kind, reader string, content agent.Content) (root string, addrs []string, err error) {
	a, err := b.start(ctx, manyHolders, "holders")
	if err != nil {
		return "", nil, err
	}
	for i := range b.sizes.manyPeers {
		open := agent.Open{
			Kind: kind, Dir: fmt.Sprintf("%s-%d", b.dir(manyHolders, string(kind)), i),
			Listen: []string{b.listen(manyHolders, port+i)},
		}
		if reader != "" {
			open.Peers = []string{"/p2p/" + reader}
		}
		opened, err := a.Open(ctx, open)
		if err != nil {
			return "", nil, err
		}
		addrs = append(addrs, opened.Addrs...)
		seeded, err := a.Seed(ctx, agent.Seed{Peer: opened.Peer, Content: content, Nth: i, Of: b.sizes.manyPeers, Copies: manyCopies})
		if err != nil {
			return "", nil, err
		}
		root = seeded.Root
	}
	return root, addrs, nil
}
