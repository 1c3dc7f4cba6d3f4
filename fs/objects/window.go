package objects

import "context"

// maxBoarded is how many chunks one caller has on their way at once.
var maxBoarded = [purposes]int{demand: 16, background: 4}

// window brings chunks of an object in order, some on their way while others
// are used.
//
// It waits for memory only while it holds none, so that no two can wait for
// each other: the first chunk may be waited for, those after it are boarded
// where there is room.
type window struct {
	l       *Loader
	o       *object
	why     purpose
	next    int // to board
	end     int // after the last
	flights [16]*flight
}

// fill boards what can be boarded, now that chunk i is to be used.
func (w *window) fill(ctx context.Context, i int) error {
	for ; w.next < min(w.end, i+maxBoarded[w.why]); w.next++ {
		if w.why == background {
			if err := w.l.gate.quiet(ctx, 0); err != nil {
				return err
			}
		}
		slot := &w.flights[w.next%len(w.flights)]
		if w.o.has(w.next) {
			if w.why == demand {
				w.l.stats.Hits.Add(1)
			}
			*slot = nil
			continue
		}
		f, err := w.l.board(ctx, w.o, w.next, w.why, w.next == i)
		if err != nil {
			return err
		}
		if f == nil {
			return nil
		}
		*slot = f
	}
	return nil
}

// waits reports whether anything that was boarded has still to arrive.
func (w *window) waits() bool {
	for _, f := range w.flights {
		if f != nil && !f.arrived() {
			return true
		}
	}
	return false
}

// boarded returns the flight of chunk i, which was boarded. It is nil if the
// chunk is in the cache.
func (w *window) boarded(i int) *flight { return w.flights[i%len(w.flights)] }

// take is boarded for who leaves the flight himself.
func (w *window) take(i int) *flight {
	f := w.boarded(i)
	w.flights[i%len(w.flights)] = nil
	return f
}

// leave leaves all flights that were not taken. keep has them go on.
func (w *window) leave(keep bool) {
	for i, f := range w.flights {
		if f == nil {
			continue
		}
		w.flights[i] = nil
		if keep {
			w.l.keep(f)
		}
		w.l.leave(f)
	}
}
