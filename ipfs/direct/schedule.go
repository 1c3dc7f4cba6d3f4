package direct

import (
	"math/bits"
	"math/rand/v2"
	"time"
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
	if until := w.since.Add(w.answerTime()); now.Before(until) && (len(x.strangers) > 0 || len(x.remotes) == 0 && len(x.Host.Network().Peers()) == 0) {
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
		if r.flights >= maxFlights || now.Before(r.rest) || w.waited == 0 && !x.hasRoom(r, now) {
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
		until := h.since.Add(w.answerTime())
		if soon = now.Before(until); soon {
			x.dispatchAt(until)
		}
		// The first block of a file does not wait for the answer.
		return false, w.part <= 0, soon
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
	for _, r := range x.remotes {
		for x.hasRoom(r, now) {
			w := x.pick(r, now)
			if w == nil {
				break
			}
			x.launch(w, r)
		}
	}
}

// hasRoom tells whether r can be asked now for one more block that nobody waits
// for.
func (x *Exchange) hasRoom(r *remote, now time.Time) bool {
	return x.urgent == 0 && x.bulkFlights < maxAllBulk && x.inBulk < maxAllBulkBytes &&
		r.inBulk < r.meter.window && r.bulkFlights < maxBulkFlights && r.flights < maxFlights &&
		!now.Before(r.rest) && r.ctx.Err() == nil
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
