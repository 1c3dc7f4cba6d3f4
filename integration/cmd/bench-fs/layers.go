package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/benchout"
)

// layers looks at the same names in an image of many layers and in one of a
// single layer. No name is known to the kernel when a round begins, but all of
// what is needed to find it is in memory.
func layers(ctx context.Context, b *bench) error {
	if _, err := b.startDaemons(ctx, ""); err != nil {
		return err
	}
	var stats []measurement
	for _, n := range []int{b.sizes.layers, 1} {
		p, err := b.pull(ctx, stack(n))
		if err != nil {
			return err
		}
		r, _, err := b.prepare(ctx, lazy, p.cid)
		if err != nil {
			return err
		}
		for d := range stackDirs {
			for f := range stackFiles {
				if err := b.same(filepath.Join(r.dir, stackName(d, f)), stackContents(d, f)); err != nil {
					return fmt.Errorf("an image of %d layers: %w", n, err)
				}
			}
		}
		stats = append(stats, statNames(r))
	}
	for _, s := range stats {
		if _, err := s(ctx); err != nil {
			return err
		}
	}
	m, err := inTurn(ctx, b.sizes.stats, stats[0], stats[1])
	if err != nil {
		return err
	}
	return b.add(benchout.Figure{
		Name: fmt.Sprintf("stat-%d-layers", b.sizes.layers), Value: m.value, Unit: "µs",
		Reference: "one layer", ReferenceValue: m.reference, Bar: benchout.AtMost(1.1),
	})
}

// statNames asks for the attributes of all names, and gives microseconds a name.
func statNames(r *root) measurement {
	var paths []string
	for d := range stackDirs {
		for f := range stackFiles {
			paths = append(paths, filepath.Join(r.dir, stackName(d, f)))
		}
	}
	return func(context.Context) (float64, error) {
		if err := dropCaches(dropNames); err != nil {
			return 0, err
		}
		var st unix.Stat_t
		var errs []error
		begin := time.Now()
		for _, p := range paths {
			if err := unix.Lstat(p, &st); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", p, err))
			}
		}
		took := time.Since(begin)
		return float64(took.Nanoseconds()) / 1e3 / float64(len(paths)), errors.Join(errs...)
	}
}
