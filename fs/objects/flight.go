package objects

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/internal/buffer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// flight is one chunk on its way: from its source into memory, where all who
// want it read it, and then, behind them, into the cache.
type flight struct {
	obj     *object
	chunk   int
	account purpose // whose memory it holds
	started time.Time
	cancel  context.CancelFunc
	raised  chan struct{} // closed when somebody comes to wait for it

	// Guarded by Loader.mu.
	purpose purpose
	users   int
	keep    bool // it goes on without users
	landed  bool
	over    bool          // nothing more happens to it but that users leave
	stored  chan struct{} // closed when it is in the cache, if it can be
	// The cache could not keep it, so it is kept here, on no account.
	stranded bool
	offered  time.Time // to the cache, when it is stranded

	done chan struct{} // closed when buf and err are set
	buf  *buffer.Buffer
	err  error
}

type flightID struct {
	key   cache.Key
	chunk int
}

func (f *flight) id() flightID { return flightID{f.obj.Key, f.chunk} }

func (f *flight) arrived() bool {
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}

func (f *flight) size() int64 { return f.obj.Chunks[f.chunk].Size }

// board returns the flight of a chunk, and starts it if there is none. Whoever
// it is for has to leave it, but for a reader that is still to come, who is no
// user. The flight is nil if it would have to wait for memory, and wait is
// false: only who holds no other flight may wait.
func (l *Loader) board(ctx context.Context, o *object, i int, why purpose, wait bool) (*flight, error) {
	id := flightID{o.Key, i}
	l.mu.Lock()
	f := l.join(id, why)
	l.mu.Unlock()
	if f != nil {
		return f, nil
	}
	size := o.Chunks[i].Size
	if !l.memory.try(why, size) {
		if !wait {
			return nil, nil
		}
		if err := l.memory.acquire(ctx, why, size); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	f = l.join(id, why) // somebody else may have been faster
	if f == nil && !l.closed {
		return l.launch(o, i, why), nil
	}
	l.memory.release(why, size)
	if f == nil {
		return nil, ErrClosed
	}
	return f, nil
}

// join returns the flight of a chunk that is on its way; nil if it is not. l.mu
// is held.
func (l *Loader) join(id flightID, why purpose) *flight {
	f := l.flights[id]
	if f == nil {
		return nil
	}
	if why != ahead {
		f.users++
	}
	if why == demand {
		l.stats.Joined.Add(1)
	}
	if f.stranded {
		l.offerAgain(f)
	}
	if why < f.purpose && !f.landed {
		if f.purpose == background {
			close(f.raised)
			l.stats.Raised.Add(1)
		}
		f.purpose = why
	}
	return f
}

// launch starts a flight, whose memory is taken. l.mu is held.
func (l *Loader) launch(o *object, i int, why purpose) *flight {
	ctx, cancel := context.WithCancel(l.ctx)
	f := &flight{
		obj: o, chunk: i, account: why, started: time.Now(), cancel: cancel, raised: make(chan struct{}),
		purpose: why, keep: why == ahead, done: make(chan struct{}), stored: make(chan struct{}),
	}
	if why == background {
		ctx = layer.WithBackground(ctx, f.raised)
	}
	if why != ahead {
		f.users = 1
	}
	l.flights[f.id()] = f
	l.objects.share(o)
	l.wg.Go(func() { l.fly(ctx, f) })
	return f
}

// fly is a flight's goroutine.
func (l *Loader) fly(ctx context.Context, f *flight) {
	defer l.objects.put(f.obj)
	defer f.cancel()
	f.err = l.fetch(ctx, f)
	l.mu.Lock()
	f.landed = true
	if f.err != nil {
		l.remove(f)
	}
	l.mu.Unlock()
	close(f.done)
	if f.account == ahead {
		f.obj.arrived(f.started)
	}
	kept := f.err != nil
	if !kept {
		l.writers <- struct{}{}
		kept = l.store(f.obj, f)
		<-l.writers
	}
	l.mu.Lock()
	if !kept {
		l.strand(f)
	} else {
		l.remove(f)
	}
	f.over = true
	close(f.stored)
	free := f.users == 0
	l.mu.Unlock()
	if free {
		l.free(f)
	}
}

// room returns the flight's buffer. It is taken when there is something to put
// there: memory that was not touched before is dear, and most of its time a flight
// waits.
func (f *flight) room() []byte {
	if f.buf == nil {
		f.buf = buffer.Get(f.size())
	}
	return f.buf.Bytes()
}

// fetch fills the flight's buffer.
func (l *Loader) fetch(ctx context.Context, f *flight) error {
	// Another flight may have landed since the cache was last looked into.
	if _, err := f.obj.open(l.cache); err == nil && f.obj.has(f.chunk) && f.obj.readHere(f.room(), f.obj.Chunks[f.chunk].Offset) == nil {
		return nil
	}
	if err := l.contents.ReadChunk(ctx, f.obj.Object, f.chunk, f.room); err != nil {
		if l.ctx.Err() != nil {
			return ErrClosed
		}
		if !errors.Is(err, context.Canceled) {
			l.stats.Failures.Add(1)
		}
		return fmt.Errorf("object %s, chunk %d: %w", f.obj.Key, f.chunk, err)
	}
	l.mu.Lock()
	fetched := &l.stats.fetched[f.purpose]
	l.mu.Unlock()
	fetched.Chunks.Add(1)
	fetched.Bytes.Add(f.size())
	return nil
}

// store puts a flight's chunk, of object o, into the cache. Who calls it is one of
// few writers: there is one disk.
func (l *Loader) store(o *object, f *flight) (ok bool) {
	if err := o.store(l.cache, f.chunk, f.buf.Bytes()); err != nil {
		l.stats.CacheErrors.Add(1)
		return false
	}
	return true
}

// leave ends a user's interest in a flight. One that nobody is interested in
// any more ends, but for one that is kept: ahead of a reader, of which there is
// no more than a window, or for one who will be back at once.
func (l *Loader) leave(f *flight) {
	l.mu.Lock()
	f.users--
	none := f.users == 0
	if none && !f.landed && !f.keep {
		f.cancel()
		l.remove(f)
	}
	free := none && f.over
	l.mu.Unlock()
	if free {
		l.free(f)
	}
}

// keep has a flight go on without users.
func (l *Loader) keep(f *flight) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f.keep = true
}

// remove has the chunk of a flight fetched anew by who wants it next, if it is
// not in the cache. l.mu is held.
func (l *Loader) remove(f *flight) {
	if l.flights[f.id()] == f {
		delete(l.flights, f.id())
	}
}

// free gives a flight's memory back.
func (l *Loader) free(f *flight) {
	if f.buf != nil {
		buffer.Put(f.buf)
	}
	if !f.stranded {
		l.memory.release(f.account, f.size())
	}
}
