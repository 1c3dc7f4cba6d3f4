// Package stall ends work that makes no progress. A fetch may take as long as
// its size needs, so it has no deadline; what it may not do is wait for others
// without an end.
package stall

import (
	"context"
	"errors"
	"sync"
	"time"
)

// ErrStalled is the cause of a context that a [Watch] ended.
var ErrStalled = errors.New("no progress")

// Watch ends a context once a waiter has waited for a time without progress.
// Time in which nobody waits (the caller is busy with what it got) does not
// count. Its methods may be called by any goroutine.
type Watch struct {
	after  time.Duration
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	timer   *time.Timer
	last    time.Time // of the last sign of progress
	waiting int
}

// Start returns a context derived from ctx, and its watch, which begins with
// nobody waiting. The caller calls Stop in the end.
func Start(ctx context.Context, after time.Duration) (context.Context, *Watch) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &Watch{after: after, cancel: cancel, last: time.Now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(after, w.fire)
	return ctx, w
}

// Enter tells that the caller begins to wait for others.
func (w *Watch) Enter() { w.change(1) }

// Leave tells that the caller waits no longer.
func (w *Watch) Leave() { w.change(-1) }

// Touch tells that there was progress.
func (w *Watch) Touch() { w.change(0) }

// Stop ends the watch and its context.
func (w *Watch) Stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	w.cancel(context.Canceled)
}

func (w *Watch) change(waiting int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting += waiting
	w.last = time.Now()
}

// fire looks whether the time is really over; the timer is not moved at each
// sign of progress.
func (w *Watch) fire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch left := w.after - time.Since(w.last); {
	case w.waiting == 0:
		w.timer.Reset(w.after)
	case left > 0:
		w.timer.Reset(left)
	default:
		w.cancel(ErrStalled)
	}
}
