// Package cache keeps the contents of files (objects) that were fetched and
// verified, by [Key], in a directory that the kernel itself reads: overlayfs
// looks a file up there first, so an object that is complete is opened and
// read with no help from us.
//
// Layout below the cache's directory:
//
//	objects/<key>  a complete, verified object; appears by rename
//	partial/<key>  an object of several chunks that are not all here yet
//	suspect/<key>  objects not trusted until verified: found after a power cut,
//	               or changed by somebody else
//	tmp/           files being written, and files being removed
//	session        the boot that last wrote here, and whether it ended well
//	scrubbed       its time is when all objects were last verified
//
// Nothing is synced as it is written. What that can lose is found out
// afterwards: when a machine went down with the cache open, every object is
// set aside as suspect at the next start, and verified when it is next asked
// for, or in the background; partial objects are verified chunk by chunk after
// any restart.
//
// The time of an object's file is a function of its key and size (stamp.go), so
// whoever changes one is noticed without a record of each: at the start, as it
// happens (watch.go), and in a scrub, which reads everything (scrub.go).
//
// The cache holds to a budget (usage.go, evict.go). What is in use is asked of
// the kernel, and what was used lately of [Layers].
package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/cache/internal/kernel"
)

// ErrClosed is returned by a cache that was closed.
var ErrClosed = errors.New("cache is closed")

// Chunk is the part of an object that is fetched and verified as one.
type Chunk struct {
	Size   int64    // bytes
	Digest [32]byte // SHA-256 of them
}

// Options are what a cache needs to know.
type Options struct {
	Dir string // is made when it is not there

	// Budget is how many bytes of the disk the cache may occupy. 0: no limit.
	Budget int64
	// KeepFree is how much of the file system is left free, in percent: where
	// less is free nothing comes in, and objects go. 0: no limit.
	KeepFree int
	// Scrub is after how long all objects are read and verified again, at a low
	// rate. 0: never.
	Scrub time.Duration

	// Layers tell what objects are for. Without them all are equally old, and
	// only those of one chunk can be verified.
	Layers Layers
	Log    *slog.Logger // nil: nothing is logged

	// Set by tests; zero is what they are otherwise.
	fresh time.Duration        // freshFor
	rate  int64                // scrubRate
	seal  func(*os.File) error // kernel.Seal
}

// Cache is a directory of objects. It is safe for concurrent use.
type Cache struct {
	opts  Options
	log   *slog.Logger
	root  *os.File // the cache's directory
	usage *usage

	mu       sync.Mutex
	partials map[Key]*Partial // those open
	idle     []*Partial       // those of them that nobody uses, oldest first
	closed   bool

	moving    sync.Mutex    // held by whoever takes a file out of objects/ or suspect/
	suspects  atomic.Bool   // whether there may be anything below suspect/
	suspected chan struct{} // something came there
	counted   chan struct{} // closed when the objects found at the start are counted

	knownLayers map[string]bool // by ID, at the last eviction; nil before the first. For the evictor alone

	stop       context.CancelFunc
	background sync.WaitGroup
	watch      *os.File // nil: the kernel gave none
}

// Open opens the cache in o.Dir. One process at a time may have it open; that
// is for the caller to see to. What it holds is counted while it serves already.
func Open(o Options) (*Cache, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.fresh == 0 {
		o.fresh = freshFor
	}
	if o.rate == 0 {
		o.rate = scrubRate
	}
	if o.seal == nil {
		o.seal = kernel.Seal
	}
	c := &Cache{
		opts: o, log: o.Log,
		partials:  map[Key]*Partial{},
		suspected: make(chan struct{}, 1),
		counted:   make(chan struct{}),
	}
	if err := c.open(); err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	return c, nil
}

func (c *Cache) open() (err error) {
	for _, d := range []string{"objects", "partial", "suspect"} {
		if err := os.MkdirAll(filepath.Join(c.opts.Dir, d), 0o700); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(c.path("tmp")); err != nil {
		return err
	}
	if err := os.Mkdir(c.path("tmp"), 0o700); err != nil {
		return err
	}
	if c.root, err = os.Open(c.opts.Dir); err != nil {
		return err
	}
	c.usage = newUsage(c.root, c.opts.Budget, c.opts.KeepFree)
	if err := errors.Join(c.begin(), c.countAside()); err != nil {
		return errors.Join(err, c.root.Close())
	}
	c.watch, err = watchDir(c.Dir())
	if err != nil {
		c.log.Warn("changes that others make to the cache are noticed late: the kernel watches no directory for us (raise fs.inotify.max_user_instances)", "error", err)
	}
	c.start()
	return nil
}

// start begins what goes on in the background until [Cache.Close].
func (c *Cache) start() {
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.background.Go(func() {
		c.countObjects(ctx)
		c.evictions(ctx)
	})
	c.background.Go(func() { c.tend(ctx) })
	if c.watch != nil {
		c.background.Go(func() { c.watchChanges(ctx) })
	}
}

// Close marks the cache as ended well. Everything written is synced first, so
// that nothing need be verified after the next boot.
func (c *Cache) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	for _, p := range c.idle {
		c.forget(p)
	}
	c.idle = nil
	c.mu.Unlock()
	c.halt()
	return errors.Join(c.end(), c.root.Close())
}

// halt ends what goes on in the background.
func (c *Cache) halt() {
	c.stop()
	if c.watch != nil {
		_ = c.watch.Close()
	}
	c.background.Wait()
}

// path names a file or directory of the cache.
func (c *Cache) path(elem ...string) string {
	return filepath.Join(append([]string{c.opts.Dir}, elem...)...)
}

func (c *Cache) object(k Key) string  { return c.path("objects", k.String()) }
func (c *Cache) suspect(k Key) string { return c.path("suspect", k.String()) }

// Dir is the directory of complete objects, for overlayfs: a data-only layer.
func (c *Cache) Dir() string { return c.path("objects") }

// Has reports whether the object is complete.
func (c *Cache) Has(k Key) bool {
	var st unix.Stat_t
	return unix.Lstat(c.object(k), &st) == nil && genuine(k, &st)
}

// OpenObject opens a complete object for reading. The error is
// [fs.ErrNotExist] when it is not complete, or found to have been changed.
func (c *Cache) OpenObject(k Key) (*os.File, error) {
	f, err := os.Open(c.object(k))
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, err
	}
	if !genuine(k, &st) {
		f.Close()
		c.withdraw(k)
		return nil, &fs.PathError{Op: "open", Path: c.object(k), Err: fs.ErrNotExist}
	}
	return f, nil
}

// Put stores a whole object whose contents the caller has verified. The error
// wraps [ErrFull] when there is no room for it, which is told after a tenth of a
// second at most.
func (c *Cache) Put(k Key, data []byte) error {
	if err := c.put(k, data); err != nil {
		return fmt.Errorf("store object %s: %w", k, err)
	}
	return nil
}

func (c *Cache) put(k Key, data []byte) error {
	taken := inBlocks(int64(len(data)))
	if err := c.usage.take(taken); err != nil {
		return err
	}
	f, err := os.CreateTemp(c.path("tmp"), "put-")
	if err != nil {
		c.usage.give(taken)
		return c.usage.noSpace(err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = c.publish(f.Name(), k, taken)
	}
	if err != nil {
		c.usage.give(taken)
		_ = os.Remove(f.Name())
	}
	return c.usage.noSpace(err)
}

// publish makes the file at path, for which taken bytes are accounted already,
// the object k. If there is that object by now, path is removed.
func (c *Cache) publish(path string, k Key, taken int64) error {
	st, err := stampFile(path, k)
	if err != nil {
		return err
	}
	err = c.usage.publish(k, st.Blocks*512-taken, func() error {
		return unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, c.object(k), unix.RENAME_NOREPLACE)
	})
	if errors.Is(err, unix.EEXIST) {
		err = os.Remove(path)
		c.usage.give(taken)
	}
	return err
}
