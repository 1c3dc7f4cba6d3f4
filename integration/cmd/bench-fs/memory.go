package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/benchout"
)

// memoryMaximum is what the daemon may hold with all images mounted, MiB.
const memoryMaximum = 100

// memory mounts many large images, lets the daemon come to rest, and looks at
// the memory that is its own: not pages of files, which can go.
func memory(ctx context.Context, b *bench) error {
	if _, err := b.startDaemons(ctx, ""); err != nil {
		return err
	}
	for i := range b.sizes.images {
		p, err := b.pull(ctx, manyNames(i, b.sizes.entries))
		if err != nil {
			return err
		}
		if _, _, err := b.prepare(ctx, lazy, p.cid); err != nil {
			return err
		}
	}
	trees, err := b.treesMounted()
	if err != nil {
		return err
	}
	if trees != b.sizes.images {
		return fmt.Errorf("%d trees are mounted for %d images", trees, b.sizes.images)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(b.sizes.idle):
	}
	bytes, err := anonymousMemory(b.node.DaemonPID())
	if err != nil {
		return err
	}
	return b.add(benchout.Figure{
		Name: fmt.Sprintf("memory-%d-images-of-%d-entries", b.sizes.images, b.sizes.entries), Value: float64(bytes) / float64(mib), Unit: "MiB",
		Reference: "what it may hold", ReferenceValue: memoryMaximum, Bar: benchout.AtMost(1),
	})
}

// anonymousMemory is the memory of a process that is of no file, in bytes.
func anonymousMemory(pid int) (int64, error) {
	name := fmt.Sprintf("/proc/%d/status", pid)
	status, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "RssAnon:" {
			kilobytes, err := strconv.ParseInt(f[1], 10, 64)
			return kilobytes * kib, err
		}
	}
	return 0, fmt.Errorf("%s does not tell RssAnon", name)
}
