package objects

import (
	"context"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
)

// Lent is what a read returns: bytes that may be those of a chunk on its way into
// the cache, to be used by all who want it, until they are released.
type Lent struct {
	data   []byte
	flight *flight // whose memory it is; nil: the caller's own
	loader *Loader
}

// Bytes returns what was read, not to be changed.
func (b *Lent) Bytes() []byte { return b.data }

// Release gives the bytes back. They may not be used afterwards.
func (b *Lent) Release() {
	if b.flight != nil {
		b.loader.leave(b.flight)
	}
	*b = Lent{}
}

// ReadAt fills dst with the bytes of object k from off, fetching what is not
// here yet: the chunks that the range touches, all at once, and no others, but
// for those that a reader in order will want next. It returns fewer bytes only at
// the end of the object.
func (l *Loader) ReadAt(ctx context.Context, k cache.Key, dst []byte, off int64) (int, error) {
	lent, err := l.Read(ctx, k, dst, off)
	if err != nil {
		return 0, err
	}
	n := len(lent.data)
	if lent.flight != nil {
		copy(dst, lent.data)
	}
	lent.Release()
	return n, nil
}

// Read is [Loader.ReadAt] that saves a copy where it can: what it returns is in
// dst, or in memory that is lent.
func (l *Loader) Read(ctx context.Context, k cache.Key, dst []byte, off int64) (lent Lent, err error) {
	l.gate.begin()
	defer l.gate.end()
	err = l.with(k, func(o *object) (err error) {
		lent, err = l.read(ctx, o, dst, off)
		return err
	})
	return lent, err
}

func (l *Loader) read(ctx context.Context, o *object, dst []byte, off int64) (Lent, error) {
	if off >= o.Size || len(dst) == 0 {
		return Lent{}, nil
	}
	dst = dst[:min(int64(len(dst)), o.Size-off)]
	end := off + int64(len(dst))
	complete, err := o.open(l.cache)
	l.noteCacheError(err)
	first, last := o.at(off), o.at(end-1)
	w := window{l: l, o: o, next: first, end: last + 1}
	defer w.leave(false)
	if err := w.fill(ctx, first); err != nil {
		return Lent{}, err
	}
	if !complete { // behind what is waited for
		l.readAhead(ctx, o, off, end, w.waits())
	}
	for i := first; i <= last; i++ {
		if err := w.fill(ctx, i); err != nil {
			return Lent{}, err
		}
		c := o.Chunks[i]
		from, to := max(off, c.Offset), min(end, c.Offset+c.Size)
		lent, err := w.read(ctx, i, dst[from-off:to-off], from)
		if err != nil || first == last {
			return lent, err
		}
		copy(dst[from-off:], lent.data)
		lent.Release()
	}
	return Lent{data: dst}, nil
}

// read reads what is wanted of chunk i from off: out of its flight, or from the
// cache into part.
func (w *window) read(ctx context.Context, i int, part []byte, off int64) (Lent, error) {
	f := w.take(i)
	if f == nil {
		err := w.o.readHere(part, off)
		if err == nil {
			return Lent{data: part}, nil
		}
		w.l.noteCacheError(err) // it was there, and cannot be read
		w.leave(false)
		w.next = i + 1
		if f, err = w.l.board(ctx, w.o, i, w.why, true); err != nil {
			return Lent{}, err
		}
	}
	if err := w.l.landed(ctx, f); err != nil {
		w.l.leave(f)
		return Lent{}, err
	}
	from := off - w.o.Chunks[i].Offset
	return Lent{data: f.buf.Bytes()[from:][:len(part)], flight: f, loader: w.l}, nil
}
