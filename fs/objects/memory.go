package objects

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// purpose is what a chunk is fetched for.
type purpose uint8

const (
	demand     purpose = iota // somebody waits for it
	ahead                     // a reader will be there soon
	background                // nobody knows of anybody
	purposes
)

// memory is that of chunks on their way, from before they are asked for until
// they are in the cache and nobody reads them here any more. Each purpose has a
// bound of its own: what nobody waits for leaves room for what somebody does,
// and is the first to stand still when the disk is slower than the network.
type memory struct {
	bounds [purposes]int64
	sems   [purposes]*semaphore.Weighted
}

// In bytes. A chunk that is larger than all of it takes all of it.
var memoryBounds = [purposes]int64{demand: 64 << 20, ahead: 48 << 20, background: 32 << 20}

func newMemory(bounds [purposes]int64) *memory {
	m := &memory{bounds: bounds}
	for p := range m.sems {
		m.sems[p] = semaphore.NewWeighted(bounds[p])
	}
	return m
}

// acquire waits for room for n bytes.
func (m *memory) acquire(ctx context.Context, p purpose, n int64) error {
	return m.sems[p].Acquire(ctx, min(n, m.bounds[p]))
}

// try takes room for n bytes if there is.
func (m *memory) try(p purpose, n int64) bool {
	return m.sems[p].TryAcquire(min(n, m.bounds[p]))
}

func (m *memory) release(p purpose, n int64) { m.sems[p].Release(min(n, m.bounds[p])) }
