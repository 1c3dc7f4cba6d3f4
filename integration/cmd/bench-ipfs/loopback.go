package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/agent"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/benchout"
)

// loopback has two processes on one machine exchange blocks, ours and plain
// bitswap in turn, so that both meet the same noise.
func loopback(ctx context.Context, b *bench) error {
	pairs := map[agent.Kind]pair{}
	for _, kind := range []agent.Kind{agent.Node, agent.Bitswap, agent.BitswapTuned} {
		p, err := b.pairUp(ctx, kind, 0, 0, "")
		if err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		pairs[kind] = p
	}
	if err := b.oneBlock(ctx, pairs[agent.Node], pairs[agent.Bitswap]); err != nil {
		return err
	}
	for _, leaf := range []int64{64 * kib, 256 * kib, mib} {
		if err := b.bulk(ctx, pairs[agent.Node], pairs[agent.BitswapTuned], leaf); err != nil {
			return err
		}
	}
	return nil
}

// oneBlock measures dependent reads of one block each.
func (b *bench) oneBlock(ctx context.Context, ours, bitswap pair) error {
	const leaf = 256 * kib
	median := func(p pair) (time.Duration, error) {
		c := b.content(int64(b.sizes.singles)*leaf, leaf)
		root, err := p.seed(ctx, c)
		if err != nil {
			return 0, err
		}
		got, err := p.fetch(ctx, agent.Fetch{Root: root, Size: c.Size, Mode: agent.Each, N: -1})
		if err != nil {
			return 0, err
		}
		slices.Sort(got.Each)
		return got.Each[len(got.Each)/2], nil
	}
	value, err := median(ours)
	if err != nil {
		return err
	}
	reference, err := median(bitswap)
	if err != nil {
		return err
	}
	return b.out.Add(benchout.Figure{
		Name: "loopback-block-256KiB-p50", Value: milliseconds(value), Unit: "ms",
		Reference: "bitswap, defaults", ReferenceValue: milliseconds(reference), Bar: benchout.AtMost(0.1),
	})
}

// transfers are what came of some rounds.
type transfers struct {
	best  float64 // MB/s
	bytes int64
	cpu   time.Duration
}

// bulk measures transfers of many blocks, the best of some rounds, and what
// both processes spend on it.
func (b *bench) bulk(ctx context.Context, ours, tuned pair, leaf int64) error {
	var sums [2]transfers
	for range b.sizes.rounds {
		for i, p := range []pair{ours, tuned} {
			if err := b.round(ctx, p, leaf, &sums[i]); err != nil {
				return err
			}
		}
	}
	name := fmt.Sprintf("%dKiB", leaf/kib)
	err := b.out.Add(benchout.Figure{
		Name: "loopback-bulk-" + name, Value: sums[0].best, Unit: "MB/s",
		Reference: "bitswap, tuned", ReferenceValue: sums[1].best, Bar: benchout.AtLeast(1.5),
	})
	if err != nil {
		return err
	}
	perGB := func(t transfers) float64 { return t.cpu.Seconds() / (float64(t.bytes) / 1e9) }
	return b.out.Add(benchout.Figure{
		Name: "loopback-cpu-" + name, Value: perGB(sums[0]), Unit: "s/GB",
		Reference: "bitswap, tuned", ReferenceValue: perGB(sums[1]), Bar: benchout.AtMost(1),
	})
}

func (b *bench) round(ctx context.Context, p pair, leaf int64, sum *transfers) error {
	c := b.content(b.sizes.bulk, leaf)
	root, err := p.seed(ctx, c)
	if err != nil {
		return err
	}
	before, err := p.cpu(ctx)
	if err != nil {
		return err
	}
	got, err := p.fetch(ctx, agent.Fetch{Root: root, Size: c.Size, Mode: agent.Bulk, N: -1})
	if err != nil {
		return err
	}
	after, err := p.cpu(ctx)
	sum.best = max(sum.best, speed(got.Bytes, got.Took))
	sum.bytes += got.Bytes
	sum.cpu += after - before
	return err
}
