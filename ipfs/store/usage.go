package store

import (
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// ErrFull is returned for a block for which there is no room: the budget is
// used up by what is pinned or was put just now, or the file system is too full.
var ErrFull = errors.New("the block store is full")

// statfsEvery is after how many bytes that came in the free space of the file
// system is looked at again.
const statfsEvery = 16 << 20

// usage counts what the store holds and says what may come in. Its limit is
// hard: no more than that is ever held, but for what was there before.
type usage struct {
	dir      string
	budget   int64 // bytes; 0: none
	keepFree int   // percent of the file system

	wake chan struct{} // an eviction is due

	mu       sync.Mutex
	bytes    int64
	blocks   int64
	limit    int64 // of bytes
	lookedAt int64 // bytes that came in since the file system was looked at
}

// Stat is how much a store holds.
type Stat struct {
	Bytes, Blocks int64
	// Limit is how many bytes it may hold now: the budget, or less if the file
	// system is too full. It is [math.MaxInt64] without a limit.
	Limit int64
}

// high tells whether it is time to evict.
func (s Stat) high() bool { return s.Bytes > s.Limit-s.Limit/20 }

func newUsage(dir string, budget int64, keepFree int) *usage {
	return &usage{dir: dir, budget: budget, keepFree: keepFree, wake: make(chan struct{}, 1), lookedAt: statfsEvery}
}

// take takes n bytes for a block to come. The error wraps [ErrFull].
func (u *usage) take(n int64) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.lookedAt += n; u.lookedAt >= statfsEvery {
		u.look()
	}
	if (Stat{Bytes: u.bytes + n, Limit: u.limit}).high() {
		u.wakeUp()
	}
	if u.bytes+n > u.limit {
		u.look()
	}
	if u.bytes+n > u.limit {
		return u.full()
	}
	u.bytes += n
	return nil
}

// full says what is in the way.
func (u *usage) full() error {
	held := units.BytesSize(float64(u.bytes))
	if u.budget > 0 && u.limit == u.budget {
		return fmt.Errorf("%w: of its %s (ipfs.budget) %s are used, by what is pinned, or was pushed within the hour; unpin images, or raise the budget",
			ErrFull, units.BytesSize(float64(u.budget)), held)
	}
	return fmt.Errorf("%w: it holds %s, and the file system of %s has no more room (%d %% of it is left free, ipfs.keep_free_percent); free some, or unpin images",
		ErrFull, held, u.dir, u.keepFree)
}

// look computes the limit: what is held and what is free beyond what is to be
// left, but no more than the budget. Without an answer of the file system it is
// the budget.
func (u *usage) look() {
	u.lookedAt = 0
	u.limit = math.MaxInt64
	if u.budget > 0 {
		u.limit = u.budget
	}
	var st unix.Statfs_t
	if u.budget == 0 && u.keepFree == 0 || unix.Statfs(u.dir, &st) != nil {
		return
	}
	free := int64(st.Bavail) * st.Bsize
	keep := int64(st.Blocks) / 100 * int64(u.keepFree) * st.Bsize
	u.limit = max(0, min(u.limit, u.bytes+free-keep))
}

func (u *usage) wakeUp() {
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

func (u *usage) give(n int64) { u.add(-n, 0) }

func (u *usage) add(bytes, blocks int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.bytes += bytes
	u.blocks += blocks
}

// stat looks at the file system anew.
func (u *usage) stat() Stat {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.look()
	return Stat{Bytes: u.bytes, Blocks: u.blocks, Limit: u.limit}
}

// Stat returns how much the store holds. While it is still being counted, after
// the store was opened, that is less than there is.
func (s *Store) Stat() Stat { return s.usage.stat() }
