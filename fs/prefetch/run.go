package prefetch

import (
	"context"
	"errors"
	"time"
)

// run takes one chunk after the other and has it fetched, Concurrency at once.
func (p *Prefetcher) run(ctx context.Context) {
	slots := make(chan struct{}, p.cfg.Concurrency)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		w, c, ok := p.take(ctx)
		for !ok {
			if ctx.Err() != nil {
				return
			}
			w, c, ok = p.take(ctx)
		}
		p.wg.Go(func() {
			defer func() { <-slots }()
			kept, err := p.objects.Prefetch(w.ctx, c.object.Key, c.index)
			p.landed(w, c, kept, err)
		})
	}
}

// take returns the chunk that is to be fetched now, once it may be. It returns
// without one when something changed, so that another may be the next.
func (p *Prefetcher) take(ctx context.Context) (w *work, c chunk, ok bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.mu.Lock()
	p.wake = cancel
	w, until := p.best(time.Now())
	p.mu.Unlock()
	if w == nil {
		if until.IsZero() {
			<-ctx.Done()
		} else {
			sleep(ctx, until)
		}
		return nil, c, false
	}
	rest := w.stage == stageRest
	if !p.waitTurn(ctx, rest) {
		return nil, c, false
	}
	p.mu.Lock()
	retry := w.retry // its first stays what it is: others only append
	p.mu.Unlock()
	c, ok = w.peek(!rest, retry, p.objects)
	room := ok && p.objects.HasRoom(c.rest())
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !ok:
		w.drained = true
		return nil, c, false
	case !room:
		p.full("the cache has no room")
		return nil, c, false
	}
	p.stamp++
	w.taken = p.stamp
	w.take(c)
	if c.probe = w.failures > 0; c.probe {
		p.probes++
	}
	if rest {
		p.pace.spend(time.Now(), c.size())
	}
	return w, c, true
}

// best returns the layer of which a chunk is to be taken. If there is none it
// returns until when, zero for until something changes. p.mu is held.
func (p *Prefetcher) best(now time.Time) (best *work, until time.Time) {
	for _, w := range p.layers {
		w.settle(p.cfg.Background)
		ok, at := w.ready(now, p.probes)
		switch {
		case ok && (best == nil || w.before(best)):
			best = w
		case !at.IsZero() && (until.IsZero() || at.Before(until)):
			until = at
		}
	}
	if best != nil && now.Before(p.room.retryAt) {
		return nil, p.room.retryAt
	}
	return best, until
}

// waitTurn waits until containers leave room for a chunk, and for what the rest
// may not take before. It reports whether both came.
func (p *Prefetcher) waitTurn(ctx context.Context, rest bool) bool {
	quiet := time.Duration(0)
	if rest {
		if !sleep(ctx, p.pace.next) {
			return false
		}
		quiet = p.cfg.Quiet
	}
	p.standBack(time.Now())
	defer p.standBack(time.Time{})
	return p.objects.Quiet(ctx, quiet) == nil
}

func (p *Prefetcher) standBack(since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.backSince = since
}

// landed takes note of how the fetch of a chunk ended.
func (p *Prefetcher) landed(w *work, c chunk, kept bool, err error) {
	if err == nil && kept {
		w.tally.look(c.number, c.object, p.objects)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.wake()
	w.busy--
	if c.probe {
		p.probes--
	}
	switch {
	case w.ctx.Err() != nil: // the layer is forgotten
	case errors.Is(err, ErrBroken): // the others are fetched all the same
		p.log.Debug("an object cannot be prefetched", "cid", w.cid, "object", c.object.Key, "error", err)
	case err != nil:
		w.putBack(c)
		if w.failed(time.Now(), err) {
			p.log.Warn("a layer cannot be prefetched; it is tried again now and then", "cid", w.cid, "error", err)
		}
	case !kept:
		w.putBack(c)
		p.full("the cache could not keep what was fetched: its disk is full")
	default:
		p.fits()
		if w.succeeded() {
			p.log.Info("a layer is prefetched again", "cid", w.cid)
		}
	}
}

const (
	firstRoom = 10 * time.Second
	lastRoom  = 5 * time.Minute
)

// room is what is known of the cache's room.
type room struct {
	reason   string // "" while there is room
	failures int    // in a row
	retryAt  time.Time
}

// full puts off everything: what one layer has no room for no other has.
// p.mu is held.
func (p *Prefetcher) full(reason string) {
	now := time.Now()
	if now.Before(p.room.retryAt) {
		return // one of several that were under way together
	}
	if p.room.reason == "" {
		p.log.Warn("prefetching stops until there is room", "reason", reason)
	}
	p.room.reason = reason
	p.room.retryAt = now.Add(backoff(p.room.failures, firstRoom, lastRoom))
	p.room.failures++
}

// fits takes note that a chunk was kept. p.mu is held.
func (p *Prefetcher) fits() {
	if p.room.reason != "" && !time.Now().Before(p.room.retryAt) {
		p.log.Info("there is room again: prefetching goes on")
		p.room = room{}
	}
}

// pace holds a rate: a chunk may be fetched once those before it are paid for.
type pace struct {
	rate int64 // bytes per second; 0: no limit
	next time.Time
}

func (p *pace) spend(now time.Time, bytes int64) {
	if p.rate == 0 {
		return
	}
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(float64(bytes) / float64(p.rate) * float64(time.Second)))
}

// sleep waits until a time, and reports whether it came before ctx ended.
func sleep(ctx context.Context, until time.Time) bool {
	d := time.Until(until)
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
