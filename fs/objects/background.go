package objects

import (
	"context"
	"sync"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
)

// PrefetchChunk brings one chunk of object k into the cache, for nobody who
// waits. kept is false when it was fetched and could not be kept.
func (l *Loader) PrefetchChunk(ctx context.Context, k cache.Key, chunk int) (kept bool, err error) {
	for {
		obj, err := l.find(k)
		if err != nil {
			return false, err
		}
		kept, err = l.prefetch(ctx, obj, chunk)
		if !l.misled(obj, err) {
			return kept, err
		}
	}
}

func (l *Loader) prefetch(ctx context.Context, obj *object, chunk int) (bool, error) {
	p, release, complete := l.partial(obj)
	defer release()
	kept := func() bool { return l.cache.Has(obj.Key) || p != nil && p.Has(chunk) }
	if complete || kept() {
		return true, nil
	}
	if err := l.chunk(ctx, obj, chunk, func([]byte) {}); err != nil {
		return false, err
	}
	return kept(), nil
}

// Quiet returns when nobody reads, and nobody has for d. Its error is that of
// ctx.
func (l *Loader) Quiet(ctx context.Context, d time.Duration) error { return l.demand.quiet(ctx, d) }

// demand is the calls of those who wait: [Loader.Load] and [Loader.ReadAt].
type demand struct {
	mu      sync.Mutex
	active  int
	last    time.Time     // when the last of them ended
	changed chan struct{} // closed when active becomes 0; nil when nobody waits for that
}

// begin counts a call until end.
func (d *demand) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.active++
}

func (d *demand) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.active--
	d.last = time.Now()
	if d.active == 0 && d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}

func (d *demand) quiet(ctx context.Context, since time.Duration) error {
	for {
		left, over := d.left(since)
		if left == 0 {
			return ctx.Err()
		}
		timer := time.NewTimer(left)
		select {
		case <-over:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// left returns for how long it must go on that nobody reads, and while somebody
// does a channel that is closed when nobody does any more.
func (d *demand) left(since time.Duration) (left time.Duration, over <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.active == 0 {
		return max(0, since-time.Since(d.last)), nil
	}
	if d.changed == nil {
		d.changed = make(chan struct{})
	}
	return time.Hour, d.changed
}
