package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/benchout"
)

// names is about an image of many names in ten layers: mounting it for the
// first time and again, and walking over it.
func names(ctx context.Context, b *bench) error {
	if _, err := b.startDaemons(ctx, ""); err != nil {
		return err
	}
	p, err := b.pull(ctx, manyNames(0, b.sizes.entries))
	if err != nil {
		return err
	}
	if err := b.firstMount(ctx, p); err != nil {
		return err
	}
	ours, theirs, err := b.both(ctx, p)
	if err != nil {
		return err
	}
	return errors.Join(b.laterMounts(ctx, p), b.walks(ctx, ours, theirs))
}

// walks has find(1) look at every name.
func (b *bench) walks(ctx context.Context, ours, theirs *root) error {
	for _, r := range []*root{ours, theirs} {
		if n, err := b.countNames(ctx, r); err != nil || n < b.sizes.entries {
			return errors.Join(fmt.Errorf("find sees %d names of %d by %s", n, b.sizes.entries, r.snapshotter), err)
		}
	}
	walkOurs, walkTheirs := b.walk(ours), b.walk(theirs)
	m, err := inTurn(ctx, b.sizes.rounds, cold(walkOurs), cold(walkTheirs))
	if err != nil {
		return err
	}
	err = b.add(benchout.Figure{
		Name: "walk-cold", Value: m.value, Unit: "names/s",
		Reference: "native", ReferenceValue: m.reference, Bar: benchout.AtLeast(b.bars.walkCold),
	})
	if err != nil {
		return err
	}
	if m, err = b.again(ctx, walkOurs, walkTheirs); err != nil {
		return err
	}
	return b.add(benchout.Figure{
		Name: "walk-again", Value: m.value, Unit: "names/s",
		Reference: "native", ReferenceValue: m.reference, Bar: benchout.AtLeast(b.bars.walkAgain),
	})
}

// countNames counts what find(1) sees, each name a byte.
func (b *bench) countNames(ctx context.Context, r *root) (int, error) {
	out, err := b.node.Output(ctx, b.node.Command(ctx, "find", r.dir, "-printf", "x"))
	return len(out), err
}

// walk reads all directories and asks for the attributes of every name, as
// `find -ls` does, and gives names a second.
func (b *bench) walk(r *root) measurement {
	return func(ctx context.Context) (float64, error) {
		var stderr bytes.Buffer
		cmd := b.node.Command(ctx, "find", r.dir, "-printf", `%i %k %M %n %U %G %s %T@ %p\n`)
		cmd.Stderr = &stderr // what it prints goes to /dev/null
		begin := time.Now()
		if err := cmd.Run(); err != nil {
			return 0, fmt.Errorf("find: %w: %s", err, stderr.String())
		}
		return float64(b.sizes.entries) / time.Since(begin).Seconds(), nil
	}
}
