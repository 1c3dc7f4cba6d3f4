package main

import (
	"context"
	"fmt"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/benchout"
)

// readers has a crowd read one file at the same time that is not here yet, and
// counts what comes over the node's link, all headers included.
func readers(ctx context.Context, b *bench) error {
	if _, err := b.startDaemons(ctx, ""); err != nil {
		return err
	}
	p, err := b.pull(ctx, bigFiles(0, 1, b.sizes.crowdFile))
	if err != nil {
		return err
	}
	r, _, err := b.prepare(ctx, lazy, p.cid)
	if err != nil {
		return err
	}
	before, err := b.node.Namespace.Traffic()
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	for range b.sizes.crowd {
		g.Go(func() error {
			if gctx.Err() != nil {
				return gctx.Err()
			}
			return b.same(filepath.Join(r.dir, bigName(0)), bigContents(0, b.sizes.crowdFile, false))
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	after, err := b.node.Namespace.Traffic()
	if err != nil {
		return err
	}
	return b.add(benchout.Figure{
		Name: fmt.Sprintf("cold-file-%d-readers-received", b.sizes.crowd), Value: float64(after.Sub(before).Received) / megabyte, Unit: "MB",
		Reference: "the layer", ReferenceValue: float64(p.layers[0].Size) / megabyte, Bar: benchout.AtMost(1.05),
	})
}
