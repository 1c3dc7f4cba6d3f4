package objects

import (
	"context"
	"time"
)

// stream is a reader that reads an object in order. What it will want next is
// fetched ahead of it, more and more as long as it goes on, and less when that
// comes so late that others would have to wait behind it.
type stream struct {
	next     int64 // where it goes on
	window   int64 // how far from there is fetched; 0: it did not read in order yet
	grow     int64 // from where on the window is doubled, if the reader waits
	asked    int   // chunks before this one were asked for, or are here
	used     time.Time
	narrowed time.Time
}

const (
	maxStreams = 4 // of one object
	maxWindow  = 16 << 20
	// late is how long what is read ahead may take to come: the queue that it
	// makes is before all who read.
	late = 250 * time.Millisecond
)

// follow takes note of a read from off to end. It returns the stream that it is
// a part of, and the chunks that are to be asked for ahead of it: none for who
// reads here and there.
//
// The kernel's own read-ahead asks for several pieces at once, which come in
// any order, so a read is in order if it is not far from where it was expected.
// waits tells that what is read now is not here yet.
func (o *object) follow(off, end int64, waits bool) (s *stream, first, last int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	slack := 4 * (end - off)
	s = &o.streams[0]
	for i := range o.streams {
		x := &o.streams[i]
		if x.next > 0 && off >= x.next-slack && off <= x.next+slack {
			first, last = o.advance(x, end, waits)
			return x, first, last
		}
		if x.used.Before(s.used) {
			s = x
		}
	}
	*s = stream{next: end, used: time.Now()}
	return s, 0, 0
}

// advance moves a stream on. o.mu is held.
func (o *object) advance(s *stream, end int64, waits bool) (first, last int) {
	if end <= s.next {
		return 0, 0
	}
	at := o.at(end - 1)
	least := 2 * o.Chunks[at].Size
	switch {
	case s.window < least:
		s.window = least
		s.grow = end + least
	case waits && end >= s.grow:
		s.window = min(2*s.window, max(maxWindow, least))
		s.grow = end + s.window
	}
	s.next, s.used = end, time.Now()
	first = max(s.asked, at+1)
	last = o.at(min(end+s.window, o.Size)-1) + 1
	s.asked = max(first, last)
	return first, last
}

// arrived takes note of a chunk that was asked for ahead of a reader.
func (o *object) arrived(started time.Time) {
	if time.Since(started) < late {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range o.streams {
		s := &o.streams[i]
		// Once for all that were asked for with one window.
		if started.After(s.narrowed) {
			s.window, s.grow, s.narrowed = s.window/2, s.next+s.window, time.Now()
		}
	}
}

// readAhead asks for what a reader that is at off to end, and may wait for that,
// will want next.
func (l *Loader) readAhead(ctx context.Context, o *object, off, end int64, waits bool) {
	s, first, last := o.follow(off, end, waits)
	for i := first; i < last; i++ {
		if o.has(i) {
			continue
		}
		if f, _ := l.board(ctx, o, i, ahead, false); f == nil {
			o.mu.Lock()
			s.asked = i // there was no room: it is tried again
			o.mu.Unlock()
			return
		}
	}
}
