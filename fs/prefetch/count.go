package prefetch

import (
	"context"
	"sync"
	"time"
)

// tally is which of a layer's objects are complete in the cache: a bit each,
// so that the same news twice counts once.
type tally struct {
	total      int
	totalBytes int64

	mu      sync.Mutex
	bits    []uint64 // nil until any is set
	objects int
	bytes   int64
	at      time.Time // when the last count ended
	took    time.Duration
	ask     chan struct{} // closed when the next count ends; nil: nobody waits for it
}

// look asks the cache for an object, and takes note. It asks under the lock:
// otherwise an older answer could overwrite a newer one.
func (t *tally) look(number int32, o Object, objects Objects) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.bits == nil {
		t.bits = make([]uint64, (t.total+63)/64)
	}
	has := objects.Has(o.Key)
	word, bit := &t.bits[number/64], uint64(1)<<(number%64)
	if had := *word&bit != 0; has == had {
		return has
	}
	*word ^= bit
	if has {
		t.objects++
		t.bytes += o.Size
	} else {
		t.objects--
		t.bytes -= o.Size
	}
	return has
}

// has reports what was last known of an object.
func (t *tally) has(number int32) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.bits != nil && t.bits[number/64]>>(number%64)&1 != 0
}

func (t *tally) counted() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.at.IsZero()
}

// complete reports whether all objects were counted, and are here.
func (t *tally) complete() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.at.IsZero() && t.objects == t.total
}

// due reports whether the layer is to be counted when somebody last asked for
// all of them at that time, and whether for the first time.
func (t *tally) due(asked time.Time) (due, first bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	first = t.at.IsZero()
	return first || t.ask != nil || asked.Sub(t.at) > countAge, first
}

// countWorth is for how many times as long as it took a count is good enough for
// who asks for one layer: who asks without end then has a layer counted for less
// than a tenth of the time, and one of a few files at every question.
const countWorth = 10

// stale returns nil while the last count is good enough, and else what is closed
// when the next one ends.
func (t *tally) stale() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.at.IsZero() && time.Since(t.at) < countWorth*t.took {
		return nil
	}
	if t.ask == nil {
		t.ask = make(chan struct{})
	}
	return t.ask
}

// ended notes the end of a count.
func (t *tally) ended(took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.at, t.took = time.Now(), took
	if t.ask != nil {
		close(t.ask)
		t.ask = nil
	}
}

// count counts layers that are new, one that somebody waits for, and all of them
// when somebody asked and they were not for a while. Nobody tells us what readers
// and eviction change: to look is cheap enough, and cannot miss anything.
func (p *Prefetcher) count(ctx context.Context) {
	for {
		select {
		case <-p.recount:
		case <-ctx.Done():
			return
		}
		for w := p.uncounted(); w != nil; w = p.uncounted() {
			if !p.countOne(ctx, w) {
				return
			}
			p.mu.Lock()
			p.wake()
			p.mu.Unlock()
		}
	}
}

// uncounted returns the layer to count next: a new one before an old one, the
// latest used before others, as they are prefetched. It does not look at their
// stages, which may be changing.
func (p *Prefetcher) uncounted() (next *work) {
	p.mu.Lock()
	defer p.mu.Unlock()
	news := false
	for _, w := range p.layers {
		due, first := w.tally.due(p.asked)
		switch {
		case !due, news && !first:
		case next == nil, first && !news, w.usedAfter(next):
			next, news = w, first
		}
	}
	return next
}

// Counting asks the cache for countBatch objects and then pauses for countPause
// times as long: an image's start is not to notice it.
const (
	countBatch = 200
	countPause = 4
)

// countOne reports false when ctx ended before the layer was counted.
func (p *Prefetcher) countOne(ctx context.Context, w *work) bool {
	start := time.Now()
	began := start
	for n := range w.tally.total {
		o, ok := w.layer.Object(int32(n))
		if !ok || w.ctx.Err() != nil {
			break // it is gone, or about to be
		}
		w.tally.look(int32(n), o, p.objects)
		if n%countBatch == countBatch-1 {
			now := time.Now()
			if !sleep(ctx, now.Add(countPause*now.Sub(began))) {
				return false
			}
			began = time.Now()
		}
	}
	w.tally.ended(time.Since(start))
	return ctx.Err() == nil
}
