package direct

import (
	"context"
	"errors"
	"math/bits"
	"math/rand/v2"
	"time"

	blocks "github.com/ipfs/go-block-format"
)

const (
	// maxGuesses is how many peers are asked at once for a block that none is
	// known to hold.
	maxGuesses = 3
	// maxFlightsOfOne is how many are asked for one block that is late.
	maxFlightsOfOne = 3
	// bulkPatience is how many times as long a block may take that nobody
	// waits for; minBulkPatience is the least.
	bulkPatience    = 4
	minBulkPatience = time.Second
	// maxWaiting is how many blocks that have to wait are looked at before it
	// is taken that the others have to, too.
	maxWaiting = 256
	// rarityWords times 64 is among how many parts the rarest is looked for.
	rarityWords = 8
)

// place puts a want that nobody is asked for where dispatch finds it.
func (x *Exchange) place(w *want) {
	if w.waited == 0 && w.file != nil && w.part >= 0 {
		w.file.need.add(w.part)
		if w.file.rarity(w.part) > 0 {
			return
		}
		// Nobody is known to hold it: see whether it is lost.
	}
	x.enqueue(w)
}

func (x *Exchange) enqueue(w *want) {
	if w.queued {
		return
	}
	w.queued = true
	if w.waited > 0 {
		x.queue = append(x.queue, w)
	} else {
		x.bulkQueue = append(x.bulkQueue, w)
	}
}

// requeue has all wants that nobody is asked for looked at anew: peers came or
// went.
func (x *Exchange) requeue() {
	for _, w := range x.wants {
		if len(w.flights) == 0 {
			x.place(w)
		}
	}
}

// offered has a part looked at that r holds now.
func (x *Exchange) offered(r *remote, f *file, part int) {
	w := x.partWant(f, part)
	if w == nil {
		return
	}
	delete(w.tried, r)
	if len(w.flights) == 0 {
		x.place(w)
	}
}

// dispatch asks peers for what can be asked now.
func (x *Exchange) dispatch() {
	if x.ctx.Err() != nil {
		return
	}
	now := time.Now()
	x.queue = x.assignAll(x.queue, now)
	x.bulkQueue = x.assignAll(x.bulkQueue, now)
	x.dispatchBulk(now)
}

// assignAll assigns the wants of a queue, in order, and returns those that have
// to wait. Behind many of those it looks at no more: all peers are busy.
func (x *Exchange) assignAll(queue []*want, now time.Time) []*want {
	var waiting []*want
	for i, w := range queue {
		if len(waiting) == maxWaiting {
			return append(waiting, queue[i:]...)
		}
		if !w.over && len(w.flights) == 0 && x.assign(w, now) {
			waiting = append(waiting, w)
		} else {
			w.queued = false
		}
	}
	return waiting
}

// assign asks the best peer for a block that is in nobody's hands, or a few if
// it is not known who holds it. Without any it is lost, or has to wait.
func (x *Exchange) assign(w *want, now time.Time) (waits bool) {
	guesses := 1
	if w.waited > 0 {
		guesses = maxGuesses
	}
	for len(w.flights) < guesses {
		r, sure, wait := x.best(w, now)
		switch {
		case r != nil:
			x.launch(w, r)
			if sure {
				return false
			}
		case len(w.flights) > 0:
			return false
		case wait:
			return true
		default:
			x.lose(w)
			return false
		}
	}
	return false
}

// lose tells those who want a block that no peer has it.
func (x *Exchange) lose(w *want) {
	for a := range w.askers {
		if !a.told[w] {
			a.told[w] = true
			x.lost = append(x.lost, loss{a, w.cid})
		}
	}
}

// best returns the peer that will have w here first, of those that can be
// asked now. sure tells that it is known to hold it; wait, where there is none,
// that there may be one soon.
func (x *Exchange) best(w *want, now time.Time) (best *remote, sure, wait bool) {
	var least time.Duration
	if until := w.since.Add(answerTime); now.Before(until) && (len(x.strangers) > 0 || len(x.remotes) == 0 && len(x.Host.Network().Peers()) == 0) {
		wait = true
		x.dispatchAt(until)
	}
	for _, r := range x.remotes {
		if w.flights[r] != nil || w.inVain(r, now) || r.ctx.Err() != nil {
			continue
		}
		known, maybe, soon := x.mayHold(r, w, now)
		if !known && !maybe {
			wait = wait || soon
			continue
		}
		full := r.flights >= maxFlights || w.waited == 0 && (r.inBulk >= r.meter.window || r.bulkFlights >= maxBulkFlights)
		if now.Before(r.rest) || full || w.waited == 0 && x.urgent > 0 {
			wait = true
			continue
		}
		if sure && !known {
			continue
		}
		if t := r.meter.expect(r.ahead, w.size); best == nil || known && !sure || t < least {
			best, sure, least = r, known, t
		}
	}
	return best, sure, wait && best == nil
}

// mayHold tells whether r is known to hold w, may, or will tell soon.
func (x *Exchange) mayHold(r *remote, w *want, now time.Time) (known, maybe, soon bool) {
	if w.file == nil {
		return false, true, false
	}
	h := r.files[w.file.root]
	switch {
	case h == nil: // it is asked about too many files already
		return false, true, false
	case !h.answered:
		until := h.since.Add(answerTime)
		x.dispatchAt(until)
		// The first block of a file does not wait for the answer.
		return false, w.part <= 0, now.Before(until)
	case w.part < 0:
		// An inner node: whoever has parts of the file has these.
		return false, h.all || len(h.parts) > 0, false
	default:
		return h.has(w.part), false, false
	}
}

// dispatchBulk gives each peer as much to do as its window allows, of what
// nobody waits for.
func (x *Exchange) dispatchBulk(now time.Time) {
	if x.urgent > 0 {
		return
	}
	for _, r := range x.remotes {
		if now.Before(r.rest) || r.ctx.Err() != nil {
			continue
		}
		for r.inBulk < r.meter.window && r.bulkFlights < maxBulkFlights && r.flights < maxFlights {
			w := x.pick(r, now)
			if w == nil {
				break
			}
			x.launch(w, r)
		}
	}
}

// pick returns a block to ask r for, of those that nobody was asked for: of
// some taken at random the one that fewest peers hold. So peers that fetch a
// file at once ask its source for different parts, and then have something
// for each other.
func (x *Exchange) pick(r *remote, now time.Time) *want {
	var best *want
	rarest := 0
	for root, h := range r.files {
		f := x.files[root]
		if f == nil || len(f.need) == 0 || f.leaves == nil {
			continue
		}
		words := len(f.need)
		start, looked := rand.IntN(words), 0
		for i := 0; i < words && looked < rarityWords; i++ {
			at := (start + i) % words
			there := f.need.word(at) & h.word(at)
			if there == 0 {
				continue
			}
			looked++
			turn := rand.IntN(64) // so that of equals any is the first
			for there = bits.RotateLeft64(there, -turn); there != 0; there &= there - 1 {
				part := at<<6 + (bits.TrailingZeros64(there)+turn)&63
				n := f.rarity(part)
				if best != nil && n >= rarest {
					continue
				}
				if w := x.partWant(f, part); w != nil && !w.inVain(r, now) {
					best, rarest = w, n
				}
			}
		}
	}
	return best
}

// partWant returns the want of a part of a file; nil if it is not wanted.
func (x *Exchange) partWant(f *file, part int) *want {
	c := f.root
	if part > 0 {
		if part > len(f.leaves) {
			return nil
		}
		c = f.leaves[part-1].CID
	}
	return x.wants[c]
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
		if r, _, _ := x.best(w, time.Now()); r != nil && len(w.flights) < maxFlightsOfOne {
			x.stats.Hedged++
			x.launch(w, r)
		} else {
			w.late.Reset(2 * patience)
		}
		x.dispatch()
	})
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
		x.deliver(w, data)
		x.kept(w, data)
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

// kept stores a block that was just fetched, and has it served from now on.
func (x *Exchange) kept(w *want, data []byte) {
	b, err := blocks.NewBlockWithCid(data, w.cid)
	if err != nil {
		return // not reached: the CID was verified
	}
	x.Keep(b)
	x.inventory.added(w.cid)
}

// lied drops a peer that sent something else than what was asked for.
func (x *Exchange) lied(r *remote, w *want, err error) {
	w.tried[r] = time.Time{}
	r.rest = time.Now().Add(requestTimeout)
	x.Log.Warn("a peer sent something else than the block asked for; it is dropped", "peer", r.id.String(), "cid", w.cid.String(), "err", err)
	x.bans = append(x.bans, ban{r.id, err.Error()})
}
