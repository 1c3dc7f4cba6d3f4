package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/benchout"
)

// small opens, reads and closes many small files that are here.
func small(ctx context.Context, b *bench) error {
	if _, err := b.startDaemons(ctx, ""); err != nil {
		return err
	}
	p, err := b.pull(ctx, smallFiles(b.sizes.smallFiles))
	if err != nil {
		return err
	}
	ours, theirs, err := b.both(ctx, p)
	if err != nil {
		return err
	}
	readOurs, readTheirs := b.readSmall(ours.dir), b.readSmall(theirs.dir)
	// They come from the peer now.
	if _, err := readOurs(ctx); err != nil {
		return err
	}
	if err := b.same(filepath.Join(ours.dir, smallName(7)), smallContents(7)); err != nil {
		return err
	}
	m, err := inTurn(ctx, b.sizes.rounds, cold(readOurs), cold(readTheirs))
	if err != nil {
		return err
	}
	err = b.add(benchout.Figure{
		Name: "small-files-cold", Value: m.value, Unit: "files/s",
		Reference: "native", ReferenceValue: m.reference, Bar: benchout.AtLeast(b.bars.smallCold),
	})
	if err != nil {
		return err
	}
	if m, err = b.again(ctx, readOurs, readTheirs); err != nil {
		return err
	}
	err = b.add(benchout.Figure{
		Name: "small-files-warm", Value: m.value, Unit: "files/s",
		Reference: "native", ReferenceValue: m.reference, Bar: benchout.AtLeast(b.bars.smallWarm),
	})
	if err != nil || b.mode != fuseMode {
		return err
	}
	dir, err := b.plain(ctx, theirs)
	if err != nil {
		return err
	}
	loopback, err := b.loopback(ctx, dir)
	if err != nil {
		return err
	}
	if m, err = b.again(ctx, readOurs, b.readSmall(loopback)); err != nil {
		return err
	}
	return b.add(benchout.Figure{
		Name: "small-files-warm-loopback", Value: m.value, Unit: "files/s",
		Reference: "go-fuse's loopback", ReferenceValue: m.reference, Bar: benchout.AtLeast(2),
	})
}

// readSmall reads all the small files below dir, and gives files a second.
func (b *bench) readSmall(dir string) measurement {
	paths := make([]string, b.sizes.smallFiles)
	for i := range paths {
		paths[i] = filepath.Join(dir, smallName(i))
	}
	buf := make([]byte, 64*kib)
	var size int64 // of all, once it is known
	return func(ctx context.Context) (float64, error) {
		begin := time.Now()
		n, err := readFiles(ctx, paths, buf)
		took := time.Since(begin)
		if err == nil && (n < int64(len(paths))*4*kib || size > 0 && n != size) {
			err = fmt.Errorf("%d bytes were read of all small files in %s, %d before", n, dir, size)
		}
		size = n
		return float64(len(paths)) / took.Seconds(), err
	}
}
