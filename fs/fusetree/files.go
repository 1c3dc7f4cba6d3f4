package fusetree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/internal/interrupt"
)

// leastBacked is from which size in bytes on a file is given to the kernel to read
// by itself. A smaller one takes a single read request, once: its pages stay, and
// opening it takes half the time.
const leastBacked = 128 << 10

// handleKnown is the file handle of a file whose release package backing has to be
// told of. All others are 0.
const handleKnown = 1

// key returns the key of a file with contents.
func (s *Server) key(in *erofs.Inode) (cache.Key, error) {
	key, ok, err := s.image.Key(in)
	if err == nil && !ok {
		err = fmt.Errorf("%w: file %d has no object", erofs.ErrDamaged, in.Nid)
	}
	return key, err
}

// live reports whether a file's contents are made at each read.
func (s *Server) live(key cache.Key) bool {
	if s.cfg.Live == nil {
		return false
	}
	_, ok := s.cfg.Live.Size(key)
	return ok
}

// Open decides who reads the file. What is read of it stays true, so the page
// cache is kept from one open to the next; of what is live nothing does, so each
// read comes here.
//
// Where the kernel never reads by itself, and nothing is live, there is nothing to
// decide, and it is told once that it need not ask.
func (s *Server) Open(cancel <-chan struct{}, h *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if s.pool == nil && s.cfg.Live == nil {
		return fuse.ENOSYS
	}
	start := time.Now()
	defer func() { s.stats.Opens.Observe(time.Since(start)) }()
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	var in erofs.Inode
	if err := s.inode(&h.InHeader, &in); err != nil {
		return s.failed("open", err)
	}
	backed := s.pool != nil && in.Size >= leastBacked
	if in.Size == 0 || !backed && s.cfg.Live == nil {
		return fuse.OK
	}
	key, err := s.key(&in)
	if err != nil {
		return s.failed("open", err)
	}
	if s.live(key) {
		out.OpenFlags = fuse.FOPEN_DIRECT_IO
		return fuse.OK
	}
	if !backed {
		return fuse.OK
	}
	f, err := s.openObject(key, in.Size)
	if err != nil && int64(in.Size) <= s.cfg.SmallSize {
		if status := s.load(cancel, &h.InHeader, key); !status.Ok() {
			return status
		}
		f, err = s.openObject(key, in.Size)
	}
	out.Fh = handleKnown
	if id, ok := s.pool.Acquire(in.Nid, func() (*os.File, error) { return f, err }); ok {
		s.stats.Passthrough.Add(1)
		out.OpenFlags = fuse.FOPEN_PASSTHROUGH
		out.BackingID = id
	}
	if f != nil {
		_ = f.Close() // the pool does it, if it takes it
	}
	return fuse.OK
}

// openObject opens a complete object, which must have the size that the image
// says: else the layer's table of contents is false, and it is for the object's
// reader to say so.
func (s *Server) openObject(key cache.Key, size uint64) (*os.File, error) {
	f, err := s.cfg.Objects.Open(key)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && uint64(fi.Size()) != size {
		err = fmt.Errorf("object %s has %d bytes, not %d", key, fi.Size(), size)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// load fetches a small object whole. What cannot be fetched is no error of the
// open: the file may never be read.
func (s *Server) load(cancel <-chan struct{}, h *fuse.InHeader, key cache.Key) fuse.Status {
	ctx, done, ok := s.waiting.begin(cancel, h)
	if !ok {
		return fuse.EIO
	}
	defer done()
	_, err := s.cfg.Objects.Load(ctx, key)
	if err != nil && ctx.Err() != nil {
		return fuse.EINTR
	}
	return fuse.OK
}

// Release tells package backing that a file it knows is not open any more.
func (s *Server) Release(_ <-chan struct{}, h *fuse.ReleaseIn) {
	if h.Fh == handleKnown {
		s.pool.Release(s.nid(h.NodeId))
	}
}

// Flush is answered once for all: there is nothing to do.
func (s *Server) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

var errNames = errors.New("this mount has names alone, for overlays")

// Read fetches what is missing of the range.
func (s *Server) Read(cancel <-chan struct{}, h *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if s.cfg.Names {
		return nil, s.failed("read", errNames)
	}
	start := time.Now()
	defer func() { s.stats.Reads.Observe(time.Since(start)) }()
	var in erofs.Inode
	var key cache.Key
	err := s.inode(&h.InHeader, &in)
	if err == nil {
		key, err = s.key(&in)
	}
	if err != nil {
		return nil, s.failed("read", err)
	}
	ctx, done, ok := s.waiting.begin(cancel, &h.InHeader)
	if !ok {
		return nil, fuse.EIO
	}
	defer done()
	n, err := s.readAt(ctx, key, buf, int64(h.Offset))
	if err != nil {
		if ctx.Err() != nil {
			return nil, fuse.EINTR
		}
		return nil, s.failed("a container's read", err)
	}
	d := answers.Get().(*answer)
	d.b = buf[:n]
	return d, fuse.OK
}

// readAt reads what a file contains, from an offset on.
func (s *Server) readAt(ctx context.Context, key cache.Key, buf []byte, off int64) (int, error) {
	if !s.live(key) {
		return s.cfg.Objects.ReadAt(ctx, key, buf, off)
	}
	b, err := s.cfg.Live.Contents(ctx, key)
	return copy(buf, b[min(off, int64(len(b))):]), err
}

// answer is a [fuse.ReadResult] of bytes in the request's own buffer.
type answer struct{ b []byte }

var answers = sync.Pool{New: func() any { return new(answer) }}

// Bytes implements [fuse.ReadResult].
func (d *answer) Bytes([]byte) ([]byte, fuse.Status) { return d.b, fuse.OK }

// Size implements [fuse.ReadResult].
func (d *answer) Size() int { return len(d.b) }

// Done implements [fuse.ReadResult].
func (d *answer) Done() {
	d.b = nil
	answers.Put(d)
}

// waiting is the requests that may be waiting for contents.
type waiting struct {
	mu       sync.Mutex
	ended    bool
	requests map[uint64]context.CancelFunc // by the kernel's number of the request
}

// begin returns the context of a request, which ends when its thread is killed or
// the server is closed. It reports false if that is so already. done must be
// called when the request is answered.
func (w *waiting) begin(cancel <-chan struct{}, h *fuse.InHeader) (ctx context.Context, done func(), ok bool) {
	ctx, finish := interrupt.Context(cancel, h.Pid)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		finish()
		return nil, nil, false
	}
	unique := h.Unique
	w.requests[unique] = finish
	return ctx, func() {
		w.mu.Lock()
		delete(w.requests, unique)
		w.mu.Unlock()
		finish()
	}, true
}

// end ends all requests, and those to come.
func (w *waiting) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	for _, finish := range w.requests {
		finish()
	}
}
