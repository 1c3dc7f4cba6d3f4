package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/agent"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/benchout"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/delay"
)

const (
	linkBits = 100e6 // bits a second
	oneWay   = 25 * time.Millisecond
	// rangeLeaves are read at once over the long link.
	rangeLeaves = 32
)

// The nodes of the link scenario.
const (
	linkSeeder = iota
	linkReader
	linkRelay
)

// link measures a narrow link, and one that is long too: a relay between the
// nodes holds everything back.
func link(ctx context.Context, b *bench) error {
	if err := b.Net.SetRate(linkBits); err != nil {
		return err
	}
	if err := b.narrow(ctx, "link-100Mbit", ""); err != nil {
		return err
	}
	if err := b.end(); err != nil {
		return err
	}
	return b.withRelay(func(via string) error {
		if err := b.narrow(ctx, "link-100Mbit-50ms", via); err != nil {
			return err
		}
		if err := b.end(); err != nil {
			return err
		}
		// How often it goes forth and back is asked of a link that is wide.
		if err := b.Net.SetRate(0); err != nil {
			return err
		}
		return b.roundTrips(ctx, via)
	})
}

// withRelay runs f while a relay leads to the seeder, on the same ports: that of
// its node, and the next one for plain TCP. via is the relay's multiaddr.
func (b *bench) withRelay(f func(via string) error) error {
	ns := b.Nodes[linkRelay].Namespace
	var relays []*delay.Relay
	defer func() {
		for _, r := range relays {
			r.Close()
		}
	}()
	for _, p := range []uint16{port, port + 1} {
		l, err := ns.Listen(p)
		if err != nil {
			return err
		}
		relays = append(relays, delay.Start(l, func(ctx context.Context) (net.Conn, error) {
			return ns.Dial(ctx, netip.AddrPortFrom(b.Nodes[linkSeeder].Namespace.Addr, p))
		}, oneWay))
	}
	return f(b.listen(linkRelay, port))
}

// narrow measures a bulk transfer against one of plain TCP.
func (b *bench) narrow(ctx context.Context, name, via string) error {
	raw, err := b.rawTCP(ctx, via != "")
	if err != nil {
		return fmt.Errorf("raw TCP: %w", err)
	}
	p, err := b.pairUp(ctx, agent.Node, linkSeeder, linkReader, via)
	if err != nil {
		return err
	}
	c := b.content(b.sizes.link, layerLeaf)
	root, err := p.seed(ctx, c)
	if err != nil {
		return err
	}
	relayed, err := b.Nodes[linkRelay].Namespace.Traffic()
	if err != nil {
		return err
	}
	got, err := p.fetch(ctx, agent.Fetch{Root: root, Size: c.Size, Mode: agent.Bulk, N: -1})
	if err != nil {
		return err
	}
	after, err := b.Nodes[linkRelay].Namespace.Traffic()
	if err != nil {
		return err
	}
	if via != "" && after.Sub(relayed).Sent < c.Size {
		return errors.New("the nodes went around the relay")
	}
	return b.out.Add(benchout.Figure{
		Name: name + "-bulk", Value: speed(got.Bytes, got.Took), Unit: "MB/s",
		Reference: "TCP, same link", ReferenceValue: raw, Bar: benchout.AtLeast(0.9),
	})
}

// rawTCP moves as many bytes over one TCP connection and gives MB/s.
func (b *bench) rawTCP(ctx context.Context, relayed bool) (float64, error) {
	l, err := b.Nodes[linkSeeder].Namespace.Listen(port + 1)
	if err != nil {
		return 0, err
	}
	sent := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			sent <- err
			return
		}
		_, err = io.Copy(c, agent.Content{Size: b.sizes.link, Leaf: layerLeaf}.Reader())
		sent <- errors.Join(err, c.Close())
	}()
	to := linkSeeder
	if relayed {
		to = linkRelay
	}
	c, err := b.Nodes[linkReader].Namespace.Dial(ctx, netip.AddrPortFrom(b.Nodes[to].Namespace.Addr, port+1))
	if err != nil {
		l.Close()
		return 0, errors.Join(err, <-sent)
	}
	begin := time.Now()
	got, err := io.Copy(io.Discard, c)
	took := time.Since(begin)
	err = errors.Join(err, c.Close(), l.Close(), <-sent)
	if err == nil && got != b.sizes.link {
		err = fmt.Errorf("%d bytes of %d arrived", got, b.sizes.link)
	}
	return speed(got, took), err
}

// roundTrips measures a read of many leaves against one of a single leaf.
func (b *bench) roundTrips(ctx context.Context, via string) error {
	p, err := b.pairUp(ctx, agent.Node, linkSeeder, linkReader, via)
	if err != nil {
		return err
	}
	const step = 1 + rangeLeaves
	c := b.content(int64(step*b.sizes.ranges)*layerLeaf, layerLeaf)
	root, err := p.seed(ctx, c)
	if err != nil {
		return err
	}
	var one, more []time.Duration
	for i := range b.sizes.ranges {
		for _, r := range []struct {
			first, n int
			took     *[]time.Duration
		}{{i * step, 1, &one}, {i*step + 1, rangeLeaves, &more}} {
			got, err := p.fetch(ctx, agent.Fetch{Root: root, Size: c.Size, Mode: agent.Range, First: r.first, N: r.n})
			if err != nil {
				return err
			}
			*r.took = append(*r.took, got.Took)
		}
	}
	slices.Sort(one)
	slices.Sort(more)
	return b.out.Add(benchout.Figure{
		Name: fmt.Sprintf("link-50ms-range-%d-leaves", rangeLeaves), Value: milliseconds(more[len(more)/2]), Unit: "ms",
		Reference: "one leaf", ReferenceValue: milliseconds(one[len(one)/2]), Bar: benchout.AtMost(2),
	})
}
