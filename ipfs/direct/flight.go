package direct

import (
	"context"
	"errors"
	"time"

	blocks "github.com/ipfs/go-block-format"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/buffer"
)

// flight is a request to one peer.
type flight struct {
	want   *want
	remote *remote
	cancel context.CancelFunc
	bulk   bool
	size   int
}

// launch asks r for w.
func (x *Exchange) launch(w *want, r *remote) {
	now := time.Now()
	ctx, cancel := context.WithCancel(r.ctx)
	fl := &flight{want: w, remote: r, cancel: cancel, bulk: w.waited == 0, size: w.size}
	if r.flights == 0 {
		r.meter.busy(now)
	}
	patience := r.meter.patience(r.ahead, w.size)
	r.flights++
	r.ahead += fl.size
	if fl.bulk {
		r.bulkFlights++
		r.inBulk += fl.size
		x.bulkFlights++
		x.inBulk += fl.size
		patience = max(bulkPatience*patience, minBulkPatience)
	}
	w.flights[r] = fl
	if w.file != nil && w.part >= 0 {
		w.file.need.remove(w.part)
	}
	x.expect(w, patience)
	x.done.Go(func() {
		defer cancel()
		data, delay, err := x.client.get(ctx, r.id, w.cid)
		x.landed(fl, data, delay, err)
		buffer.Put(data)
	})
}

// expect sets when w is late.
func (x *Exchange) expect(w *want, patience time.Duration) {
	if w.late != nil {
		w.late.Stop()
	}
	w.isLate = false
	x.hurry(w)
	w.late = time.AfterFunc(patience, func() {
		x.mu.Lock()
		defer x.unlock()
		if w.over || len(w.flights) == 0 {
			return
		}
		w.isLate = true
		x.hurry(w)
		if r := x.another(w); r != nil {
			x.stats.Hedged++
			x.launch(w, r)
		} else {
			w.late.Reset(2 * patience)
		}
		x.dispatch()
	})
}

// another returns who else to ask for a block that is late. While nobody waits
// for it and other parts are to be had, those are asked for instead.
func (x *Exchange) another(w *want) *remote {
	if len(w.flights) >= maxFlightsOfOne || w.waited == 0 && w.file != nil && w.file.need.count() > 0 {
		return nil
	}
	r, _, _ := x.best(w, time.Now())
	return r
}

// hurry keeps count of the blocks that somebody waits for and that are on
// their way. A late one is not counted: it must not hold up all others.
func (x *Exchange) hurry(w *want) {
	urgent := !w.over && w.waited > 0 && len(w.flights) > 0 && !w.isLate
	switch {
	case urgent && !w.urgent:
		x.urgent++
	case !urgent && w.urgent:
		x.urgent--
	}
	w.urgent = urgent
}

// landed takes in how a request went.
func (x *Exchange) landed(fl *flight, data []byte, delay time.Duration, err error) {
	w, r := fl.want, fl.remote
	now := time.Now()
	x.mu.Lock()
	delete(w.flights, r)
	x.hurry(w)
	var busy busyError
	switch {
	case err == nil:
		r.failures = 0
		r.meter.answered(now, delay, len(data), fl.bulk)
		x.stats.BlocksReceived++
		x.stats.BytesReceived += int64(len(data))
		if w.over {
			break
		}
		if b, err := blocks.NewBlockWithCid(data, w.cid); err == nil { // always: its hash was verified
			x.take(w, b, x.Keep)
		}
		x.mu.Lock()
	case errors.Is(err, errMissing):
		r.meter.answered(now, delay, 0, false)
		w.tried[r] = now.Add(lastRest)
		if h := x.holding(r, w); h != nil {
			h.gone.add(w.part)
		}
	case errors.Is(err, errLied):
		x.lied(r, w, err)
	case w.over, r.ctx.Err() != nil: // it was called off, or the peer is gone
	case errors.As(err, &busy):
		x.stats.Failed++
		x.failed(r, now, busy.after)
	default:
		x.stats.Failed++
		x.Log.Debug("a peer did not give a block", "peer", r.id.String(), "cid", w.cid.String(), "err", err)
		x.failed(r, now, 0)
		w.tried[r] = r.rest
	}
	r.flights--
	r.ahead -= fl.size
	if fl.bulk {
		r.bulkFlights--
		r.inBulk -= fl.size
		x.bulkFlights--
		x.inBulk -= fl.size
	}
	if !w.over && len(w.flights) == 0 {
		x.place(w)
	}
	x.dispatch()
	x.unlock()
}

func (x *Exchange) holding(r *remote, w *want) *holding {
	if w.file == nil || w.part < 0 {
		return nil
	}
	return r.files[w.file.root]
}

// lied drops a peer that sent something else than what was asked for.
func (x *Exchange) lied(r *remote, w *want, err error) {
	w.tried[r] = time.Time{}
	r.rest = time.Now().Add(requestTimeout)
	x.Log.Warn("a peer sent something else than the block asked for; it is dropped", "peer", r.id.String(), "cid", w.cid.String(), "err", err)
	x.bans = append(x.bans, ban{r.id, err.Error()})
}
