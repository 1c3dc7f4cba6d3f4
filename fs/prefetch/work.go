package prefetch

import (
	"context"
	"time"
)

type stage int

const (
	stageHead stage = iota
	stageRest
	stageDone
)

// work is what there is to do for a layer. Prefetcher.mu guards it where
// nothing else is said.
type work struct {
	layer  Layer
	cid    string
	ctx    context.Context // ends when the layer is forgotten
	cancel context.CancelFunc
	tally  tally // has a lock of its own

	stage   stage // only the goroutine that runs changes it before it is stageDone
	used    int64 // stamp of when it was last added or used
	taken   int64 // stamp of when its last chunk was taken
	drained bool  // every chunk of this stage was taken once
	busy    int   // chunks under way
	retry   []chunk

	failures int // in a row
	retryAt  time.Time
	err      error // the last

	// Of the goroutine that runs: where it is in this stage.
	order []int32
	at    int // in order
	next  int // chunk of the object there
}

// chunk is one chunk to be fetched.
type chunk struct {
	number int32 // of the object in its layer
	object Object
	index  int
	again  bool // it was tried before
	probe  bool // its layer failed: this finds out whether that is over
}

// size is about how many bytes the chunk has: chunks of an object are alike.
func (c chunk) size() int64 {
	return (c.object.Size + int64(c.object.Chunks) - 1) / int64(c.object.Chunks)
}

// rest is about how many bytes the object has from this chunk on. An object
// for which there is no room is better not begun.
func (c chunk) rest() int64 { return c.size() * int64(c.object.Chunks-c.index) }

func newWork(l Layer) *work {
	w := &work{layer: l, cid: l.CID(), stage: stageDone}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.tally.total, w.tally.totalBytes = l.Total()
	return w
}

// settle goes to the next stage when there is nothing left of this one. Only
// the goroutine that runs calls it.
func (w *work) settle(background bool) {
	if w.busy > 0 || w.stage == stageDone {
		return
	}
	whole := w.stage == stageRest && w.tally.complete()
	if !whole && (!w.drained || len(w.retry) > 0) {
		return
	}
	w.drained, w.retry = false, nil
	w.order, w.at, w.next = nil, 0, 0
	if w.stage == stageHead && background {
		w.stage = stageRest
	} else {
		w.stage = stageDone
	}
}

// ready reports whether a chunk of the layer may be taken. It may not be before
// the time returned, if that is set.
func (w *work) ready(now time.Time, probes int) (ok bool, at time.Time) {
	switch {
	case w.stage == stageDone, w.drained && len(w.retry) == 0:
		return false, at
	case w.stage == stageRest && !w.tally.counted():
		return false, at // it may be complete; the count says so at less cost
	case w.failures == 0:
		return true, at
	case now.Before(w.retryAt):
		return false, w.retryAt
	}
	// Layers that nobody has must not take all there is from those that
	// somebody has: each try can last as long as a fetch may go without any
	// progress.
	return probes == 0, at
}

// before reports whether w goes before v: heads in turn, then the layer that
// was used last.
func (w *work) before(v *work) bool {
	switch {
	case w.stage != v.stage:
		return w.stage < v.stage
	case w.stage == stageHead && w.taken != v.taken:
		return w.taken < v.taken
	}
	return w.usedAfter(v)
}

// usedAfter reports whether w was used after v; of layers used together, it is
// the same one each time.
func (w *work) usedAfter(v *work) bool {
	if w.used != v.used {
		return w.used > v.used
	}
	return w.cid < v.cid
}

// maxRetry bounds how many chunks of a layer wait for another try. Once there
// are so many, nothing new of it is tried.
const maxRetry = 1024

// peek returns the next chunk of the stage of which anything is missing. One
// that failed is tried again when all others were tried: a peer may have some
// of a layer and not all. Only the goroutine that runs calls it, without
// Prefetcher.mu: it may look at many objects.
func (w *work) peek(head bool, retry []chunk, objects Objects) (c chunk, ok bool) {
	if w.order == nil {
		w.order = w.layer.Order(head)
	}
	for ; len(retry) < maxRetry && w.at < len(w.order) && w.ctx.Err() == nil; w.at, w.next = w.at+1, 0 {
		n := w.order[w.at]
		if w.next == 0 && w.tally.has(n) {
			continue
		}
		o, ok := w.layer.Object(n)
		if !ok {
			w.at = len(w.order) // there will be no other of it either
			break
		}
		if w.next == 0 && w.tally.look(n, o, objects) {
			continue
		}
		return chunk{number: n, object: o, index: w.next}, true
	}
	if len(retry) > 0 {
		return retry[0], true
	}
	return c, false
}

// take goes on behind the chunk that peek returned.
func (w *work) take(c chunk) {
	w.busy++
	if c.again {
		w.retry = w.retry[1:]
		return
	}
	if w.next++; w.next == c.object.Chunks {
		w.at, w.next = w.at+1, 0
	}
}

// putBack has a chunk tried again later.
func (w *work) putBack(c chunk) {
	c.again, c.probe = true, false
	w.retry = append(w.retry, c)
}

const (
	firstRetry = time.Second
	lastRetry  = 5 * time.Minute
	// tellAfter is with how many failures in a row a layer is told of. Fewer
	// are a peer that lacks a block.
	tellAfter = 3
)

// failed puts off the layer. It reports whether that is to be told.
func (w *work) failed(now time.Time, err error) (tell bool) {
	if now.Before(w.retryAt) && w.failures > 0 {
		return false // one of several that were under way together
	}
	w.err = err
	w.retryAt = now.Add(backoff(w.failures, firstRetry, lastRetry))
	w.failures++
	return w.failures == tellAfter
}

// succeeded takes note that the layer can be had. It reports whether that is
// to be told.
func (w *work) succeeded() (tell bool) {
	tell = w.failures >= tellAfter
	w.failures, w.err = 0, nil
	return tell
}

// backoff is how long to wait after so many failures before.
func backoff(failures int, first, last time.Duration) time.Duration {
	d := first
	for range failures {
		if d *= 2; d >= last {
			return last
		}
	}
	return d
}
