package objects

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// ErrNoObject says that no layer of this node holds an object.
var ErrNoObject = errors.New("no layer holds this object")

// Contents knows where objects can be had. Package fs implements it over the
// layers of this node.
type Contents interface {
	// Find returns an object's chunks. sure is false when layers disagree on
	// its size, so that what is returned is only a claim until it was read.
	Find(k cache.Key) (obj layer.Object, sure, ok bool)
	// FindID returns the key of the object whose id this is: see [cache.Key.ID].
	FindID(id uint64) (cache.Key, bool)
	// ReadChunk fills dst with chunk i of object obj, verified. The error is
	// [layer.ErrChunk] when every layer that claims to hold it gave something
	// else; Find then knows better.
	ReadChunk(ctx context.Context, obj layer.Object, i int, dst []byte) error
}

// maxInFlight bounds the bytes of chunks that are being fetched or copied.
const maxInFlight = 256 << 20

// Loader brings objects into the cache, and reads them while it does. Loads of
// one chunk are shared; each caller leaves on its own context, and the load
// itself ends only when the last one has left.
type Loader struct {
	contents Contents
	cache    *cache.Cache
	known    *lru.Cache[cache.Key, *object]
	memory   *semaphore.Weighted
	stats    Stats

	mu      sync.Mutex
	flights map[flightID]*flight
	wg      sync.WaitGroup
}

type flightID struct {
	key   cache.Key
	chunk int
}

// object is an object's chunks, as layers tell them and as the cache wants them.
type object struct {
	layer.Object
	chunks []cache.Chunk
}

// knownObjects is how many objects' chunks are kept at hand: a large file is
// read in thousands of requests, and has thousands of chunks.
const knownObjects = 256

// flight is one chunk on its way.
type flight struct {
	cancel context.CancelFunc
	users  int // guarded by Loader.mu

	done chan struct{} // closed when what follows is set
	data []byte
	err  error
}

// NewLoader returns a loader of contents into c.
func NewLoader(contents Contents, c *cache.Cache) *Loader {
	known, err := lru.New[cache.Key, *object](knownObjects)
	if err != nil {
		panic(err) // the size is positive
	}
	return &Loader{
		contents: contents,
		cache:    c,
		known:    known,
		memory:   semaphore.NewWeighted(maxInFlight),
		flights:  map[flightID]*flight{},
	}
}

// Stats returns the loader's counters.
func (l *Loader) Stats() *Stats { return &l.stats }

// Wait returns when no load is under way. Loads whose callers have left end at
// once.
func (l *Loader) Wait() { l.wg.Wait() }

// find returns an object's chunks.
func (l *Loader) find(k cache.Key) (*object, error) {
	if obj, ok := l.known.Get(k); ok {
		return obj, nil
	}
	found, sure, ok := l.contents.Find(k)
	if !ok {
		return nil, fmt.Errorf("object %s: %w", k, ErrNoObject)
	}
	obj := &object{found, make([]cache.Chunk, len(found.Chunks))}
	for i, c := range found.Chunks {
		obj.chunks[i] = cache.Chunk{Size: c.Size, Digest: c.Digest}
	}
	if sure {
		l.known.Add(k, obj)
	}
	return obj, nil
}

// Load brings the whole object k into the cache. complete is false when it was
// fetched and could not be kept (the disk is full).
func (l *Loader) Load(ctx context.Context, k cache.Key) (complete bool, err error) {
	for {
		obj, err := l.find(k)
		if err != nil {
			return false, err
		}
		complete, err = l.load(ctx, obj)
		if !l.misled(obj, err) {
			return complete, err
		}
	}
}

// misled reports whether err comes of a layer's false claim about the object
// that is known to be one by now, so that another try would find another.
func (l *Loader) misled(obj *object, err error) bool {
	if !errors.Is(err, layer.ErrChunk) {
		return false
	}
	l.known.Remove(obj.Key)
	next, _, ok := l.contents.Find(obj.Key)
	return ok && next.Size != obj.Size
}

func (l *Loader) load(ctx context.Context, obj *object) (bool, error) {
	p, release, complete := l.partial(obj)
	defer release()
	if complete {
		return true, nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range obj.Chunks {
		g.Go(func() error {
			if p != nil && p.Has(i) {
				return nil
			}
			return l.chunk(ctx, obj, i, func([]byte) {})
		})
	}
	if err := g.Wait(); err != nil {
		return false, err
	}
	return l.cache.Has(obj.Key), nil
}

// ReadAt fills dst with the bytes of object k from off, fetching the chunks
// that are not here yet, all at once. It returns fewer bytes only at the end
// of the object.
func (l *Loader) ReadAt(ctx context.Context, k cache.Key, dst []byte, off int64) (int, error) {
	if f, err := l.cache.OpenObject(k); err == nil {
		defer f.Close()
		n, err := f.ReadAt(dst, off)
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return n, err
	}
	for {
		obj, err := l.find(k)
		if err != nil {
			return 0, err
		}
		n, err := l.readAt(ctx, obj, dst, off)
		if !l.misled(obj, err) {
			return n, err
		}
	}
}

func (l *Loader) readAt(ctx context.Context, obj *object, dst []byte, off int64) (int, error) {
	if off >= obj.Size {
		return 0, nil
	}
	dst = dst[:min(int64(len(dst)), obj.Size-off)]
	p, release, complete := l.partial(obj)
	defer release()
	if complete {
		return l.ReadAt(ctx, obj.Key, dst, off)
	}
	g, ctx := errgroup.WithContext(ctx)
	end := off + int64(len(dst))
	first := sort.Search(len(obj.Chunks), func(i int) bool { return obj.Chunks[i].Offset+obj.Chunks[i].Size > off })
	for i := first; i < len(obj.Chunks) && obj.Chunks[i].Offset < end; i++ {
		c := obj.Chunks[i]
		from, to := max(off, c.Offset), min(end, c.Offset+c.Size)
		part := dst[from-off : to-off]
		g.Go(func() error {
			if p != nil && p.Has(i) {
				_, err := p.ReadAt(part, from)
				return err
			}
			return l.chunk(ctx, obj, i, func(data []byte) { copy(part, data[from-c.Offset:]) })
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	return len(dst), nil
}

// partial opens the cache's file for an object of several chunks. p is nil for
// an object of one chunk, which is stored whole, and where the cache cannot
// keep it: then it is read all the same.
func (l *Loader) partial(obj *object) (p *cache.Partial, release func(), complete bool) {
	if ok, err := l.cache.Recover(obj.Key, obj.chunks); err == nil && ok {
		return nil, func() {}, true
	}
	if len(obj.Chunks) == 1 {
		return nil, func() {}, l.cache.Has(obj.Key)
	}
	p, err := l.cache.Partial(obj.Key, obj.chunks)
	if err != nil {
		l.stats.CacheErrors.Add(1)
		return nil, func() {}, false
	}
	return p, p.Release, p.Complete()
}

// chunk calls use with the verified bytes of one chunk, which it may not keep.
// They are in the cache by then, if they can be.
func (l *Loader) chunk(ctx context.Context, obj *object, i int, use func(data []byte)) error {
	f := l.join(obj, i)
	defer l.leave(flightID{obj.Key, i}, f)
	select {
	case <-f.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if f.err != nil {
		return f.err
	}
	use(f.data)
	return nil
}

// join returns the flight of a chunk, and starts it if there is none.
func (l *Loader) join(obj *object, i int) *flight {
	id := flightID{obj.Key, i}
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.flights[id]; f != nil {
		f.users++
		return f
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &flight{cancel: cancel, users: 1, done: make(chan struct{})}
	l.flights[id] = f
	l.wg.Go(func() {
		defer close(f.done)
		defer cancel()
		f.data, f.err = l.fetch(ctx, obj, i)
		if f.err != nil {
			l.stats.Failures.Add(1)
		}
	})
	return f
}

// leave ends one caller's interest in a flight.
func (l *Loader) leave(id flightID, f *flight) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f.users--; f.users > 0 {
		return
	}
	f.cancel()
	if l.flights[id] == f {
		delete(l.flights, id)
	}
}

// fetch reads a chunk and puts it into the cache.
func (l *Loader) fetch(ctx context.Context, obj *object, i int) (data []byte, err error) {
	size := obj.Chunks[i].Size
	if err := l.memory.Acquire(ctx, min(size, maxInFlight)); err != nil {
		return nil, err
	}
	defer l.memory.Release(min(size, maxInFlight))
	data = make([]byte, size)
	// Another flight may have landed since the cache was last looked into.
	if l.cached(obj, i, data) {
		return data, nil
	}
	if err := l.contents.ReadChunk(ctx, obj.Object, i, data); err != nil {
		return nil, fmt.Errorf("object %s, chunk %d: %w", obj.Key, i, err)
	}
	l.stats.ChunksFetched.Add(1)
	l.stats.BytesFetched.Add(size)
	if err := l.store(obj, i, data); err != nil {
		l.stats.CacheErrors.Add(1) // the reader gets it without
	}
	return data, nil
}

// cached fills data with a chunk if it is in the cache.
func (l *Loader) cached(obj *object, i int, data []byte) bool {
	off := obj.Chunks[i].Offset
	if f, err := l.cache.OpenObject(obj.Key); err == nil {
		defer f.Close()
		_, err := f.ReadAt(data, off)
		return err == nil
	}
	if len(obj.Chunks) == 1 {
		return false
	}
	p, err := l.cache.Partial(obj.Key, obj.chunks)
	if err != nil {
		return false
	}
	defer p.Release()
	if !p.Has(i) {
		return false
	}
	_, err = p.ReadAt(data, off)
	return err == nil
}

func (l *Loader) store(obj *object, i int, data []byte) error {
	if len(obj.Chunks) == 1 {
		return l.cache.Put(obj.Key, data)
	}
	p, err := l.cache.Partial(obj.Key, obj.chunks)
	if err != nil {
		return err
	}
	defer p.Release()
	return p.Write(i, data)
}
