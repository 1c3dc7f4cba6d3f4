package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/benchout"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/delay"
)

const (
	oneWay = 25 * time.Millisecond

	// daemonPort is where daemons listen, and the relay for them.
	daemonPort = 4001
	// echoPort is where what comes is sent back.
	echoPort = 4002

	// farStride is how many files lie between two that are read, so that no
	// block holds something of both.
	farStride = 100
)

// far reads single small files for the first time, from a peer at the end of a
// long link: through a relay on the middle node that holds everything back.
func far(ctx context.Context, b *bench) error {
	for _, port := range []uint16{daemonPort, echoPort} {
		if err := b.relay(port); err != nil {
			return err
		}
	}
	announce := fmt.Sprintf("/ip4/%s/tcp/%d", b.middle.Namespace.Addr, daemonPort)
	if _, err := b.startDaemons(ctx, announce); err != nil {
		return err
	}
	// The first file is for what has to happen once.
	p, err := b.pull(ctx, smallFiles((1+b.sizes.farFiles)*farStride))
	if err != nil {
		return err
	}
	r, _, err := b.prepare(ctx, lazy, p.cid)
	if err != nil {
		return err
	}
	relayed, err := b.middle.Namespace.Traffic()
	if err != nil {
		return err
	}
	var reads []time.Duration
	var size int64
	buf := make([]byte, 64*kib)
	for i := range 1 + b.sizes.farFiles {
		begin := time.Now()
		n, err := readFiles(ctx, []string{filepath.Join(r.dir, smallName(i*farStride))}, buf)
		if err != nil {
			return err
		}
		if size += n; i > 0 {
			reads = append(reads, time.Since(begin))
		}
	}
	after, err := b.middle.Namespace.Traffic()
	if err != nil {
		return err
	}
	// Half of a file's bytes do not compress.
	if after.Sub(relayed).Sent < size/2 {
		return errors.New("the nodes went around the relay")
	}
	trips, err := b.roundTrips(ctx, b.sizes.farFiles)
	if err != nil {
		return err
	}
	return b.add(benchout.Figure{
		Name: "cold-small-file-50ms-p50", Value: milliseconds(middle(reads)), Unit: "ms",
		Reference: "one round trip", ReferenceValue: milliseconds(middle(trips)), Bar: benchout.AtMost(1.2),
	})
}

// middle is the median.
func middle(times []time.Duration) time.Duration {
	times = slices.Sorted(slices.Values(times))
	return times[(len(times)-1)/2]
}

// relay makes a port of the middle node lead to the seeder's, the long way,
// until the scenario ends.
func (b *bench) relay(port uint16) error {
	ns := b.middle.Namespace
	l, err := ns.Listen(port)
	if err != nil {
		return err
	}
	r := delay.Start(l, func(ctx context.Context) (net.Conn, error) {
		return ns.Dial(ctx, netip.AddrPortFrom(b.seeder.Namespace.Addr, port))
	}, oneWay)
	b.ends = append(b.ends, r.Close)
	return nil
}

// roundTrips has single bytes go to the seeder and come back, over one TCP
// connection through the relay.
func (b *bench) roundTrips(ctx context.Context, n int) (trips []time.Duration, err error) {
	l, err := b.seeder.Namespace.Listen(echoPort)
	if err != nil {
		return nil, err
	}
	echoed := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.Copy(c, c)
			err = errors.Join(err, c.Close())
		}
		echoed <- err
	}()
	defer func() { err = errors.Join(err, l.Close(), <-echoed) }()
	c, err := b.node.Namespace.Dial(ctx, netip.AddrPortFrom(b.middle.Namespace.Addr, echoPort))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	one := make([]byte, 1)
	for i := range 1 + n { // the first one opens the relay's own connection
		begin := time.Now()
		if _, err := c.Write(one); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, one); err != nil {
			return nil, err
		}
		if i > 0 {
			trips = append(trips, time.Since(begin))
		}
	}
	return trips, nil
}
