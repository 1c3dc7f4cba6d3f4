package objects

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// ErrNoObject says that no layer of this node holds an object.
var ErrNoObject = errors.New("no layer holds this object")

// ErrClosed is returned by a loader that was closed.
var ErrClosed = errors.New("the loader of objects is closed")

// Contents knows where objects can be had. Package fs implements it over the
// layers of this node.
type Contents interface {
	// Find returns an object's chunks. sure is false when layers disagree on
	// its size, so that what is returned is only a claim until it was read.
	Find(k cache.Key) (obj layer.Object, sure, ok bool)
	// FindID returns the key of the object whose id this is: see [cache.Key.ID].
	FindID(id uint64) (cache.Key, bool)
	// ReadChunk fills what room returns with chunk i of object obj, verified. It
	// asks for room when it has something to put there; however often it does, it
	// is the same. The error is
	// [layer.ErrChunk] when every layer that claims to hold it gave something
	// else; Find then knows better.
	ReadChunk(ctx context.Context, obj layer.Object, i int, room func() []byte) error
}

// Loader brings objects into the cache, and reads them while it does. Each chunk
// is fetched once, whoever wants it and for what; each caller leaves on its own
// context, and the fetch itself ends only when the last one has left.
type Loader struct {
	contents Contents
	cache    *cache.Cache
	objects  *table
	memory   *memory
	gate     demandGate
	stats    Stats
	writers  chan struct{} // a token each

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // flights

	mu            sync.Mutex
	flights       map[flightID]*flight
	stranded      []*flight
	strandedBytes int64
	closed        bool
}

// maxWriters is how many chunks are written to the cache at once.
const maxWriters = 4

// NewLoader returns a loader of contents into c. It is to be closed before c.
func NewLoader(contents Contents, c *cache.Cache) *Loader {
	l := &Loader{
		contents: contents,
		cache:    c,
		objects:  newTable(contents),
		memory:   newMemory(memoryBounds),
		writers:  make(chan struct{}, maxWriters),
		flights:  map[flightID]*flight{},
	}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// Stats returns the loader's counters.
func (l *Loader) Stats() *Stats { return &l.stats }

// Close ends what is on its way, and returns when what has arrived is in the
// cache. Who waits gets [ErrClosed], as does whoever wants what is not here.
func (l *Loader) Close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.cancel()
	l.wg.Wait()
	l.objects.close()
}

// Quiet returns when nobody has waited for anything for so long, or with ctx's
// error.
func (l *Loader) Quiet(ctx context.Context, long time.Duration) error {
	return l.gate.quiet(ctx, long)
}

// Load brings the whole object k into the cache. complete is false when it was
// fetched and could not be kept (the disk is full).
func (l *Loader) Load(ctx context.Context, k cache.Key) (complete bool, err error) {
	l.gate.begin()
	defer l.gate.end()
	return l.load(ctx, k, demand, 0, math.MaxInt)
}

// PrefetchChunk brings chunk i of object k into the cache, for nobody who waits.
// It stands back while anybody waits for anything, and what is on its way is
// marked with [layer.WithBackground]. What somebody comes to wait for meanwhile
// is not fetched again but raised. kept is false when the chunk was fetched and
// could not be kept.
func (l *Loader) PrefetchChunk(ctx context.Context, k cache.Key, i int) (kept bool, err error) {
	complete, err := l.load(ctx, k, background, i, i+1)
	if complete || err != nil {
		return complete, err
	}
	err = l.with(k, func(o *object) error {
		kept = o.has(i)
		return nil
	})
	return kept, err
}

// load brings chunks first to below end into the cache. complete tells that the
// object is.
func (l *Loader) load(ctx context.Context, k cache.Key, why purpose, first, end int) (complete bool, err error) {
	err = l.with(k, func(o *object) error {
		complete, err := o.open(l.cache)
		l.noteCacheError(err)
		if complete {
			if l.cache.Has(k) {
				return nil
			}
			// It was evicted while it was open here.
			l.objects.forget(o)
			return errStale
		}
		return l.loadChunks(ctx, o, why, first, min(end, len(o.Chunks)))
	})
	if errors.Is(err, errStale) {
		return false, nil // others have it open, and so it reads on
	}
	return err == nil && l.cache.Has(k), err
}

func (l *Loader) loadChunks(ctx context.Context, o *object, why purpose, first, end int) error {
	w := window{l: l, o: o, why: why, next: first, end: end}
	// Who has no more patience comes back to read it, and finds it on its way.
	defer func() { w.leave(errors.Is(context.Cause(ctx), errImpatient)) }()
	for i := first; i < end; i++ {
		if err := w.fill(ctx, i); err != nil {
			return err
		}
		f := w.boarded(i)
		if f == nil {
			continue
		}
		if err := l.landed(ctx, f); err != nil {
			return err
		}
		if err := await(ctx, l.stored(f)); err != nil {
			return err
		}
		l.leave(w.take(i))
	}
	return nil
}

// landed waits for a flight.
func (l *Loader) landed(ctx context.Context, f *flight) error {
	if err := await(ctx, f.done); err != nil {
		return err
	}
	return f.err
}

// errStale says that an object is to be looked up anew.
var errStale = errors.New("the object changed its state")

// with calls use with the object k, and once more where what it was told of the
// object turned out to be wrong.
func (l *Loader) with(k cache.Key, use func(o *object) error) error {
	for stale := 0; ; {
		o, err := l.objects.get(k)
		if err != nil {
			return err
		}
		err = use(o)
		again := l.misled(o, err)
		l.objects.put(o)
		if errors.Is(err, errStale) && stale == 0 {
			stale++
			again = true
		}
		if !again {
			return err
		}
	}
}

// misled reports whether err comes of a layer's false claim about the object
// that is known to be one by now, so that another try would find another.
func (l *Loader) misled(o *object, err error) bool {
	if !errors.Is(err, layer.ErrChunk) {
		return false
	}
	l.objects.forget(o)
	next, _, ok := l.contents.Find(o.Key)
	return ok && next.Size != o.Size
}

// noteCacheError counts an error that the cache may have: what it does not have
// is fetched.
func (l *Loader) noteCacheError(err error) {
	if err != nil {
		l.stats.CacheErrors.Add(1)
	}
}
