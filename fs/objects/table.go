package objects

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"sync"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// object is an object in use: its chunks, as layers tell them, what of it is in
// the cache, and who reads it in order.
type object struct {
	layer.Object
	chunks []cache.Chunk // as the cache wants them

	users int       // guarded by table.mu
	since time.Time // likewise; when it was used last
	gone  bool      // likewise; not in the table

	mu      sync.Mutex
	partial *cache.Partial // of an object of several chunks
	file    *os.File       // of a complete object of one
	streams [maxStreams]stream
}

// open looks for the object in the cache, if that was not done before.
// complete tells that all of it is there; what is to be known of the rest
// [object.has] tells.
func (o *object) open(c *cache.Cache) (complete bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.partial != nil {
		return o.partial.Complete(), nil
	}
	if o.file != nil {
		return true, nil
	}
	_, err = c.Recover(o.Key, o.chunks)
	if len(o.chunks) > 1 {
		p, perr := c.Partial(o.Key, o.chunks)
		if perr != nil {
			return false, errors.Join(err, perr)
		}
		o.partial = p
		return p.Complete(), err
	}
	f, ferr := c.OpenObject(o.Key)
	if ferr != nil {
		return false, err // it is not there: the usual case
	}
	o.file = f
	return true, err
}

// has reports whether chunk i was found in the cache.
func (o *object) has(i int) bool {
	o.mu.Lock()
	p, f := o.partial, o.file
	o.mu.Unlock()
	if p != nil {
		return p.Has(i)
	}
	return f != nil
}

// readHere fills b from chunks that the object has.
func (o *object) readHere(b []byte, off int64) error {
	o.mu.Lock()
	p, f := o.partial, o.file
	o.mu.Unlock()
	var n int
	var err error
	switch {
	case p != nil:
		n, err = p.ReadAt(b, off)
	case f != nil:
		n, err = f.ReadAt(b, off)
	default:
		return os.ErrNotExist
	}
	if n < len(b) {
		return fmt.Errorf("object %s has %d bytes of %d at %d: %w", o.Key, n, len(b), off, errors.Join(err, io.ErrUnexpectedEOF))
	}
	return nil
}

// store puts chunk i into the cache.
func (o *object) store(c *cache.Cache, i int, data []byte) error {
	if len(o.chunks) == 1 {
		return c.Put(o.Key, data)
	}
	if _, err := o.open(c); err != nil {
		return err
	}
	return o.partial.Write(i, data)
}

// at returns the number of the chunk that holds the byte at off.
func (o *object) at(off int64) int {
	return sort.Search(len(o.Chunks), func(i int) bool { return o.Chunks[i].Offset+o.Chunks[i].Size > off })
}

func (o *object) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.partial != nil {
		o.partial.Release()
	}
	if o.file != nil {
		o.file.Close()
	}
}

// Objects that nobody uses stay open for a while: a large file is read in
// thousands of requests, and has thousands of chunks.
const (
	maxIdle  = 64
	idleTime = 10 * time.Second
)

// table is the objects in use, and those that were a moment ago.
type table struct {
	contents Contents

	mu      sync.Mutex
	objects map[cache.Key]*object
	idle    int // of them, those that nobody uses
	sweep   *time.Timer
	closed  bool
}

func newTable(contents Contents) *table {
	return &table{contents: contents, objects: map[cache.Key]*object{}}
}

// get returns the object k, to be given back to put.
func (t *table) get(k cache.Key) (*object, error) {
	if o := t.known(k); o != nil {
		return o, nil
	}
	found, sure, ok := t.contents.Find(k) // looks into files: not under the lock
	if !ok {
		return nil, fmt.Errorf("object %s: %w", k, ErrNoObject)
	}
	o := &object{Object: found, chunks: make([]cache.Chunk, len(found.Chunks)), users: 1}
	for i, c := range found.Chunks {
		o.chunks[i] = cache.Chunk{Size: c.Size, Digest: c.Digest}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !sure || t.closed {
		o.gone = true // a mere claim is nobody else's
		return o, nil
	}
	if other := t.objects[k]; other != nil {
		t.use(other)
		return other, nil
	}
	t.objects[k] = o
	return o, nil
}

func (t *table) known(k cache.Key) *object {
	t.mu.Lock()
	defer t.mu.Unlock()
	o := t.objects[k]
	if o != nil {
		t.use(o)
	}
	return o
}

// use notes one more user. t.mu is held.
func (t *table) use(o *object) {
	if o.users == 0 {
		t.idle--
	}
	o.users++
}

// share notes one more user of an object that is in use.
func (t *table) share(o *object) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.use(o)
}

// put ends a use.
func (t *table) put(o *object) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if o.users--; o.users > 0 {
		return
	}
	if o.gone {
		o.close()
		return
	}
	o.since = time.Now()
	if t.idle++; t.idle > maxIdle {
		t.drop(t.oldest())
	}
	if t.sweep == nil {
		t.sweep = time.AfterFunc(idleTime, t.tidy)
	}
}

// oldest returns the object that nobody has used for longest; nil if all are
// used. t.mu is held.
func (t *table) oldest() (oldest *object) {
	for _, o := range t.objects { // few: maxIdle, and those in use
		if o.users == 0 && (oldest == nil || o.since.Before(oldest.since)) {
			oldest = o
		}
	}
	return oldest
}

// tidy closes what nobody has used for idleTime: an open file keeps the disk
// from being freed.
func (t *table) tidy() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep = nil
	for o := t.oldest(); o != nil; o = t.oldest() {
		if left := idleTime - time.Since(o.since); left > 0 {
			t.sweep = time.AfterFunc(left, t.tidy)
			return
		}
		t.drop(o)
	}
}

// forget has the object looked up anew by whoever asks next.
func (t *table) forget(o *object) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drop(o)
}

// drop removes an object from the table, and closes it once nobody uses it.
// t.mu is held.
func (t *table) drop(o *object) {
	if o.gone {
		return
	}
	o.gone = true
	delete(t.objects, o.Key)
	if o.users == 0 {
		t.idle--
		o.close()
	}
}

// close drops everything.
func (t *table) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.sweep != nil {
		t.sweep.Stop()
	}
	for _, o := range t.objects {
		t.drop(o)
	}
}
