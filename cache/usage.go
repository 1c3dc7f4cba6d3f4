package cache

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/cache/internal/kernel"
)

// ErrFull is returned for what there is no room for: the budget is used up by
// what is in use, or the file system is too full. The reader goes on without
// the cache.
var ErrFull = errors.New("the cache is full")

const (
	// statfsEvery is after how many bytes that came in the free space of the
	// file system is looked at again.
	statfsEvery = 16 << 20
	// patience is for how long a writer waits for an eviction to make room.
	patience = 100 * time.Millisecond
)

// Usage is what a cache holds, and what has become of it since it was opened.
// Bytes are those allocated on the disk.
type Usage struct {
	Bytes        int64 `json:"bytes"`           // of objects, partial and suspect ones; what is unlinked does not count
	Objects      int64 `json:"objects"`         // complete ones
	PartialBytes int64 `json:"partial_bytes"`   // of Bytes, those of partial objects
	Lingering    int64 `json:"lingering_bytes"` // of evicted objects that somebody still has open or an overlay remembers: the disk has them still
	Limit        int64 `json:"limit_bytes"`     // of Bytes: the budget, or less if the file system is too full; [math.MaxInt64] without a limit
	Counted      bool  `json:"counted"`         // false while what was there at the start is being counted

	EvictedObjects  int64 `json:"evicted_objects"`
	EvictedBytes    int64 `json:"evicted_bytes"`
	Damaged         int64 `json:"damaged"`          // objects found damaged, and removed
	Changed         int64 `json:"changed"`          // objects that somebody else had changed, or replaced; those damaged by it count there too
	ScrubbedObjects int64 `json:"scrubbed_objects"` // verified again in scrubs
	ScrubbedBytes   int64 `json:"scrubbed_bytes"`
	Refused         int64 `json:"refused"` // times something was not kept for lack of room
}

// usage counts what the cache holds, and says what may come in.
type usage struct {
	root     *os.File
	budget   int64 // bytes; 0: none
	keepFree int   // percent of the file system

	wake chan struct{} // an eviction is due

	mu        sync.Mutex
	Usage                      // Lingering is that of the list below
	lookedAt  int64            // bytes that came in since the file system was looked at
	wanted    int64            // the most that was refused since the last eviction
	room      chan struct{}    // closed and replaced when room was made
	hopeless  bool             // the last eviction could not make enough: nobody waits for the next
	published map[Key]struct{} // since the count of objects began; nil when it is over
	lingering []kernel.Handle  // removed files that there are still, as far as is known
}

func newUsage(root *os.File, budget int64, keepFree int) *usage {
	return &usage{
		root: root, budget: budget, keepFree: keepFree,
		wake: make(chan struct{}, 1), lookedAt: statfsEvery,
		room: make(chan struct{}), published: map[Key]struct{}{},
	}
}

// Usage returns what the cache holds.
func (c *Cache) Usage() Usage {
	u := c.usage
	u.mu.Lock()
	defer u.mu.Unlock()
	u.look()
	u.Lingering = u.linger()
	return u.Usage
}

// HasRoom reports whether n bytes fit without anything being evicted for them.
func (c *Cache) HasRoom(n int64) bool {
	u := c.usage
	u.mu.Lock()
	defer u.mu.Unlock()
	u.look()
	return u.Bytes+n <= high(u.Limit)
}

// high is from how many bytes on objects are evicted, low down to how many.
func high(limit int64) int64 { return limit - limit/40 }
func low(limit int64) int64  { return limit - limit/20 }

// inBlocks is about what a file of n bytes occupies.
func inBlocks(n int64) int64 {
	const block = 4096
	return (n + block - 1) / block * block
}

// take takes n bytes for what is to come in. Where there is no room it waits for
// an eviction, up to patience. The error wraps [ErrFull].
func (u *usage) take(n int64) error {
	var late <-chan time.Time
	for {
		u.mu.Lock()
		fits := u.fits(n)
		room, wait := u.room, !u.hopeless && n <= u.Limit
		if !fits && wait {
			u.wanted = max(u.wanted, n)
		}
		u.mu.Unlock()
		if fits {
			return nil
		}
		if !wait {
			return u.full()
		}
		wakeUp(u.wake)
		if late == nil {
			timer := time.NewTimer(patience)
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-room:
		case <-late:
			return u.full()
		}
	}
}

// fits takes n bytes if they fit. u.mu is held.
func (u *usage) fits(n int64) bool {
	if u.lookedAt += n; u.lookedAt >= statfsEvery || u.Bytes+n > u.Limit {
		u.look()
	}
	if u.Bytes+n > u.Limit {
		return false
	}
	u.Bytes += n
	if u.Bytes > high(u.Limit) {
		wakeUp(u.wake)
	}
	return true
}

// full counts a refusal, and says what is in the way.
func (u *usage) full() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.Refused++
	const mib = 1 << 20
	if u.budget > 0 && u.Limit == u.budget {
		return fmt.Errorf("%w: of its %d MiB (cache.budget) %d MiB are held, by what is in use or has just come; raise the budget, or stop containers",
			ErrFull, u.budget/mib, u.Bytes/mib)
	}
	return fmt.Errorf("%w: it holds %d MiB, and the file system of %s has no more room (%d %% of it is left free, cache.keep_free_percent); free some",
		ErrFull, u.Bytes/mib, u.root.Name(), u.keepFree)
}

// noSpace makes the kernel's word for a full disk ours.
func (u *usage) noSpace(err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	wakeUp(u.wake)
	return errors.Join(u.full(), err)
}

// look computes the limit: what is held and what is free beyond what is to be
// left, but no more than the budget. u.mu is held.
func (u *usage) look() {
	u.lookedAt = 0
	u.Limit = u.limitWith(0)
}

// limitWith is the limit for when so many bytes more will be free soon. Without an
// answer of the file system it is the budget. u.mu is held.
func (u *usage) limitWith(soon int64) int64 {
	limit := int64(math.MaxInt64)
	if u.budget > 0 {
		limit = u.budget
	}
	var st unix.Statfs_t
	if u.keepFree == 0 || unix.Fstatfs(int(u.root.Fd()), &st) != nil {
		return limit
	}
	free := int64(st.Bavail) * st.Bsize
	keep := int64(st.Blocks) / 100 * int64(u.keepFree) * st.Bsize
	return max(0, min(limit, u.Bytes+free+soon-keep))
}

// excess is how many bytes have to go. What lingers is as good as free: to evict
// more for it would free no more of it.
func (u *usage) excess() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	limit := u.limitWith(u.linger())
	wanted := u.wanted
	u.wanted = 0
	if u.Bytes <= high(limit) && u.Bytes+wanted <= limit {
		return 0
	}
	return max(u.Bytes-low(limit), u.Bytes+wanted-limit)
}

// madeRoom lets those who wait try again, and tells whether it is worth waiting
// the next time.
func (u *usage) madeRoom(enough bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.hopeless = !enough
	close(u.room)
	u.room = make(chan struct{})
}

// publish does what makes a file the object k, with which its bytes change by
// grown.
func (u *usage) publish(k Key, grown int64, rename func() error) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := rename(); err != nil {
		return err
	}
	if u.published != nil {
		u.published[k] = struct{}{}
	}
	u.Bytes += grown
	u.Objects++
	return nil
}

// count changes the numbers.
func (u *usage) count(change func(*Usage)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	change(&u.Usage)
	// A file system may need a block more for an old file than it said when the
	// file was new.
	u.Bytes, u.PartialBytes, u.Objects = max(0, u.Bytes), max(0, u.PartialBytes), max(0, u.Objects)
}

func (u *usage) give(n int64) { u.count(func(u *Usage) { u.Bytes -= n }) }

func wakeUp(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
