package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/agent"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/benchout"
)

// fetchTimeout is the patience of the nodes that are the reference.
const fetchTimeout = 30 * time.Second

// file reads large files: while they come from a peer, against what the IPFS
// plane alone makes of the same blocks, and once they are here.
func file(ctx context.Context, b *bench) error {
	n := b.sizes.bigFiles // of those that do not compress, and of the others
	var alone []string    // directories of nodes that have nothing yet, one for each file
	for i := range 2 * n {
		alone = append(alone, filepath.Join(b.node.Dir, fmt.Sprintf("alone%d", i)))
	}
	seeder, err := b.startDaemons(ctx, "", alone...)
	if err != nil {
		return err
	}
	p, err := b.pull(ctx, bigFiles(n, n, b.sizes.bigFile))
	if err != nil {
		return err
	}
	ours, _, err := b.prepare(ctx, lazy, p.cid)
	if err != nil {
		return err
	}
	if err := b.coldSequential(ctx, "cold-sequential", p, ours, seeder, alone, 0); err != nil {
		return err
	}
	if err := b.coldSequential(ctx, "cold-sequential-compressed", p, ours, seeder, alone, n); err != nil {
		return err
	}
	for i := range 2 * n {
		if err := b.same(filepath.Join(ours.dir, bigName(i)), bigContents(i, b.sizes.bigFile, i < n)); err != nil {
			return err
		}
	}
	if err := b.unpack(ctx, p.Image); err != nil {
		return err
	}
	theirs, _, err := b.prepare(ctx, native, p.Name)
	if err != nil {
		return err
	}
	return errors.Join(
		b.complete(ctx, "sequential-1MiB", "MB/s", megabyte, ours, theirs,
			fio{b, "read", mib, b.sizes.bigFile * int64(n)}, n),
		b.complete(ctx, "random-4KiB", "reads/s", float64(4*kib), ours, theirs,
			fio{b, "randread", 4 * kib, b.sizes.random}, 1),
	)
}

// same compares a file with what it should be.
func (b *bench) same(path string, c contents) error {
	want, err := checksum(c.reader())
	if err != nil {
		return err
	}
	got, err := fileChecksum(path)
	if err == nil && got != want {
		err = fmt.Errorf("%s has other bytes than were pushed", path)
	}
	return err
}

// coldSequential reads files for the first time, from this one on, in turn with a
// node that fetches the same file's layer and does nothing with it.
func (b *bench) coldSequential(ctx context.Context, name string, p pushed, ours *root, seeder string, alone []string, first int) (err error) {
	a, err := agent.Start(ctx, b.node, "alone")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	read, fetched := first, first // the next file
	buf := make([]byte, mib)
	speed := func(took time.Duration) float64 { return float64(b.sizes.bigFile) / megabyte / took.Seconds() }
	m, err := inTurn(ctx, b.sizes.bigFiles, func(ctx context.Context) (float64, error) {
		begin := time.Now()
		n, err := readFiles(ctx, []string{filepath.Join(ours.dir, bigName(read))}, buf)
		read++
		if err == nil && n != b.sizes.bigFile {
			err = fmt.Errorf("%d bytes of %d were read", n, b.sizes.bigFile)
		}
		return speed(time.Since(begin)), err
	}, func(ctx context.Context) (float64, error) {
		took, err := fetchAlone(ctx, a, alone[fetched], seeder, p.layers[fetched])
		fetched++
		return speed(took), err
	})
	if err != nil {
		return err
	}
	return b.add(benchout.Figure{
		Name: name, Value: m.value, Unit: "MB/s",
		Reference: "the layer's blocks fetched alone", ReferenceValue: m.reference, Bar: benchout.AtLeast(0.8),
	})
}

// fetchAlone has a new node fetch a layer from the seeder, and tells how long
// that took once it knew the leaves.
func fetchAlone(ctx context.Context, a *agent.Agent, dir, seeder string, l pushedLayer) (time.Duration, error) {
	opened, err := a.Open(ctx, agent.Open{Kind: agent.Node, Dir: dir, Peers: []string{seeder}, FetchTimeout: fetchTimeout})
	if err != nil {
		return 0, err
	}
	if err := a.Connect(ctx, agent.Connect{Peer: opened.Peer, Count: 1}); err != nil {
		return 0, err
	}
	fetch := func(mode agent.Mode, n int) (agent.Fetched, error) {
		got, err := a.Fetch(ctx, agent.Fetch{Peer: opened.Peer, Root: l.CID, Size: l.Size, Mode: mode, N: n}, nil)
		if err == nil && got.Missing > 0 {
			err = fmt.Errorf("%d blocks are missing: %s", got.Missing, got.Unavailable)
		}
		return got, err
	}
	if _, err := fetch(agent.Bulk, 0); err != nil {
		return 0, err
	}
	got, err := fetch(agent.Bulk, -1)
	return got.Took, err
}

// complete reads files that are here, with no page of them in memory. They are read
// once before, for what the machine below remembers of its disks.
func (b *bench) complete(ctx context.Context, name, unit string, per float64, ours, theirs *root, job fio, files int) error {
	read := func(r *root) measurement {
		var paths []string
		for i := range files {
			paths = append(paths, filepath.Join(r.dir, bigName(i)))
		}
		return cold(func(ctx context.Context) (float64, error) {
			speed, err := job.run(ctx, paths)
			return speed / per, err
		})
	}
	m, err := b.again(ctx, read(ours), read(theirs))
	if err != nil {
		return err
	}
	return b.add(benchout.Figure{
		Name: name, Value: m.value, Unit: unit,
		Reference: "native", ReferenceValue: m.reference, Bar: benchout.AtLeast(b.bars.read),
	})
}
