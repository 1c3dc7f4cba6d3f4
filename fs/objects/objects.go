// Package objects serves the contents of files that are not in the cache yet,
// as a FUSE file system that overlayfs uses as its last data-only layer: in its
// root is every object of every layer of this node, by key. Nothing can be
// listed.
//
// The kernel comes here only for what is missing. A small object is fetched
// whole while its name is looked up, and put into the cache; the answer is
// then ESTALE, on which the kernel looks once more from the start, and finds
// the file in the cache's own directory: it is opened natively from its very
// first time on, and FUSE has no part in it. A larger one is opened here, and
// fetched chunk by chunk as it is read.
//
// The server keeps no state that a kernel relies on: node ids follow from keys
// ([cache.Key.ID]), and file handles hold nothing. Which nodes are open is known
// here only as long as the mount is (package backing).
package objects

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/internal/backing"
	"github.com/ipfs-stargz/ipfs-stargz/fs/internal/histogram"
	"github.com/ipfs-stargz/ipfs-stargz/fs/internal/interrupt"
	"github.com/ipfs-stargz/ipfs-stargz/fs/internal/readahead"
)

const (
	never = 24 * time.Hour // for how long the kernel may believe an answer that stays true

	requestSize = 1 << 20 // bytes, the largest FUSE allows

	// kernelReadAhead is how far the kernel reads ahead of a reader in order,
	// in bytes. It is also how much it reads around a page that a program maps
	// and touches, wherever that is: what is further ahead is fetched by
	// [Loader], which can tell these apart.
	kernelReadAhead = 256 << 10
)

// Live is objects whose contents are made at each read: they are in no layer, and
// never in the cache.
type Live interface {
	// Size returns an object's size, which never changes.
	Size(k cache.Key) (size int64, ok bool)
	// FindID returns the key that begins with these 64 bits.
	FindID(id uint64) (k cache.Key, ok bool)
	// Contents returns all of an object as it is now. The error is
	// [ErrNoObject] for one that is not there any more.
	Contents(ctx context.Context, k cache.Key) ([]byte, error)
}

// Config is what a [Server] needs.
type Config struct {
	Dir string // where to mount

	// SmallSize is up to which size in bytes an object is fetched whole when
	// it is first looked up. An object of one chunk is whatever its size: its
	// first byte costs no less. With 0 no look-up fetches anything: every
	// object's first open goes through FUSE.
	SmallSize int64
	// Patience is for how long a look-up waits for that. When it is over the
	// object is opened through FUSE, and waiting goes on at its first read,
	// where each reader can be interrupted alone.
	Patience time.Duration

	Live Live // served too; nil: none

	Log *slog.Logger
}

// Server serves objects at a mount point.
type Server struct {
	fuse.RawFileSystem
	cfg    Config
	loader *Loader
	cache  *cache.Cache
	fuse   *fuse.Server
	files  *backing.Pool
	start  time.Time
}

// Mount serves the loader's objects at cfg.Dir until [Server.Close].
func Mount(cfg Config, loader *Loader) (*Server, error) {
	s := &Server{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		cfg:           cfg,
		loader:        loader,
		cache:         loader.cache,
		start:         time.Now(),
	}
	srv, err := fuse.NewServer(s, cfg.Dir, &fuse.MountOptions{
		Name:                     "ipfs-stargz",
		FsName:                   "ipfs-stargz",
		AllowOther:               true,
		DirectMountStrict:        true,
		DirectMountFlags:         syscall.MS_RDONLY | syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOATIME,
		MaxWrite:                 requestSize,
		MaxReadAhead:             kernelReadAhead,
		MaxBackground:            64,
		DisableXAttrs:            true,
		DisableReadDirPlus:       true,
		ExplicitDataCacheControl: true,
	})
	if err != nil {
		return nil, fmt.Errorf("mount FUSE at %s (is /dev/fuse there, and the kernel's fuse module?): %w", cfg.Dir, err)
	}
	s.fuse = srv
	s.files = backing.New(srv, backing.Limit, cfg.Log)
	go srv.Serve()
	if err := srv.WaitMount(); err != nil {
		return nil, fmt.Errorf("mount FUSE at %s: %w", cfg.Dir, err)
	}
	if err := readahead.Set(cfg.Dir, kernelReadAhead); err != nil {
		cfg.Log.Debug("the kernel reads ahead by its own measure", "dir", cfg.Dir, "error", err)
	}
	return s, nil
}

// Close unmounts, also where overlays still use the mount, and returns when no
// request is under way. What they ask for later fails. The loader stays open.
func (s *Server) Close() error {
	if err := syscall.Unmount(s.cfg.Dir, syscall.MNT_DETACH|syscall.MNT_FORCE); err != nil {
		return fmt.Errorf("unmount %s: %w", s.cfg.Dir, err)
	}
	s.fuse.Wait()
	return nil
}

// String implements [fuse.RawFileSystem].
func (s *Server) String() string { return "objects" }

// Lookup finds an object, which may mean to fetch it.
func (s *Server) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	out.SetEntryTimeout(never)
	out.SetAttrTimeout(never)
	k, ok := cache.ParseKey(name)
	if !ok || h.NodeId != fuse.FUSE_ROOT_ID {
		return fuse.ENOENT
	}
	if s.cfg.Live != nil {
		if size, ok := s.cfg.Live.Size(k); ok {
			out.NodeId = k.ID()
			objectAttr(out.NodeId, size, &out.Attr)
			return fuse.OK
		}
	}
	return s.lookupObject(cancel, h.Pid, k, out)
}

func (s *Server) lookupObject(cancel <-chan struct{}, pid uint32, k cache.Key, out *fuse.EntryOut) fuse.Status {
	defer observe(&s.loader.stats.LookupSeconds, time.Now())
	obj, sure, ok := s.loader.contents.Find(k)
	if !ok {
		return fuse.ENOENT
	}
	if s.cfg.SmallSize > 0 && (len(obj.Chunks) == 1 || obj.Size <= s.cfg.SmallSize) || !sure {
		ctx, done := interrupt.Context(cancel, pid)
		if sure {
			// Without a limit where the size is in doubt: an entry would
			// state it.
			var stop context.CancelFunc
			ctx, stop = context.WithTimeoutCause(ctx, s.cfg.Patience, errImpatient)
			defer stop()
		}
		complete, err := s.loader.Load(ctx, k)
		impatient := context.Cause(ctx) == errImpatient
		done()
		switch {
		case err == nil && complete:
			return fuse.Status(syscall.ESTALE)
		case err == nil:
			// Fetched and not kept: opened here, and fetched once more.
			if obj, sure, ok = s.loader.contents.Find(k); !ok || !sure {
				return fuse.EIO
			}
		case !impatient:
			return s.status(err)
		}
	}
	out.NodeId = k.ID()
	objectAttr(out.NodeId, obj.Size, &out.Attr)
	return fuse.OK
}

var errImpatient = errors.New("object did not arrive in time for its look-up")

// GetAttr tells the attributes that a node was looked up with.
func (s *Server) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.SetTimeout(never)
	if in.NodeId == fuse.FUSE_ROOT_ID {
		out.Attr = fuse.Attr{Ino: in.NodeId, Mode: syscall.S_IFDIR | 0o755, Nlink: 2, Blksize: 4096}
		out.Attr.SetTimes(&s.start, &s.start, &s.start)
		return fuse.OK
	}
	size, ok := s.size(in.NodeId)
	if !ok {
		return fuse.ENOENT
	}
	objectAttr(in.NodeId, size, &out.Attr)
	return fuse.OK
}

// size returns the size of a node's object.
func (s *Server) size(node uint64) (size int64, ok bool) {
	if k, ok := s.live(node); ok {
		return s.cfg.Live.Size(k)
	}
	k, ok := s.loader.contents.FindID(node)
	if !ok {
		return 0, false
	}
	obj, _, ok := s.loader.contents.Find(k)
	return obj.Size, ok
}

// live returns the key of a node whose contents are live.
func (s *Server) live(node uint64) (k cache.Key, ok bool) {
	if s.cfg.Live == nil {
		return k, false
	}
	return s.cfg.Live.FindID(node)
}

// Open opens an object. One that is complete by now, which overlayfs does not
// know yet, is read by the kernel itself from the cache. What is read of another
// stays true, so the page cache is kept from one open to the next; of what is live
// nothing does, so each read comes here.
func (s *Server) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	defer observe(&s.loader.stats.OpenSeconds, time.Now())
	if _, ok := s.live(in.NodeId); ok {
		out.OpenFlags = fuse.FOPEN_DIRECT_IO
		return fuse.OK
	}
	id, ok := s.files.Acquire(in.NodeId, func() (*os.File, error) {
		k, ok := s.loader.contents.FindID(in.NodeId)
		if !ok {
			return nil, ErrNoObject
		}
		return s.cache.OpenObject(k)
	})
	if ok {
		s.loader.stats.Passthrough.Add(1)
		out.OpenFlags, out.BackingID = fuse.FOPEN_PASSTHROUGH, id
		return fuse.OK
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// Release implements [fuse.RawFileSystem]; handles hold nothing.
func (s *Server) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { s.files.Release(in.NodeId) }

// Read fetches what is missing of the range.
func (s *Server) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	defer observe(&s.loader.stats.ReadSeconds, time.Now())
	if k, ok := s.live(in.NodeId); ok {
		return s.readLive(cancel, in, k, buf)
	}
	k, ok := s.loader.contents.FindID(in.NodeId)
	if !ok {
		return nil, fuse.ENOENT
	}
	ctx, done := interrupt.Context(cancel, in.Pid)
	defer done()
	lent, err := s.loader.Read(ctx, k, buf, int64(in.Offset))
	if err != nil {
		return nil, s.status(err)
	}
	return &result{lent}, fuse.OK
}

// readLive reads what is so now.
func (s *Server) readLive(cancel <-chan struct{}, in *fuse.ReadIn, k cache.Key, buf []byte) (fuse.ReadResult, fuse.Status) {
	ctx, done := interrupt.Context(cancel, in.Pid)
	defer done()
	b, err := s.cfg.Live.Contents(ctx, k)
	if err != nil {
		return nil, s.status(err)
	}
	n := copy(buf, b[min(in.Offset, uint64(len(b))):])
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func observe(h *histogram.Histogram, start time.Time) { h.Observe(time.Since(start)) }

// status is the one place where an error becomes an errno.
func (s *Server) status(err error) fuse.Status {
	switch {
	case errors.Is(err, context.Canceled):
		return fuse.EINTR
	case errors.Is(err, ErrNoObject):
		return fuse.ENOENT
	}
	s.cfg.Log.Error("a container's read failed", "error", err)
	return fuse.EIO
}

// Access and Flush are answered once for all: there is nothing to do.
func (s *Server) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }

// Flush implements [fuse.RawFileSystem].
func (s *Server) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// StatFs reports the file system that the cache is on.
func (s *Server) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.cache.Dir(), &st); err != nil {
		return fuse.ToStatus(err)
	}
	out.FromStatfsT(&st)
	return fuse.OK
}

func objectAttr(id uint64, size int64, a *fuse.Attr) {
	*a = fuse.Attr{
		Ino: id, Mode: syscall.S_IFREG | 0o444, Nlink: 1,
		Size: uint64(size), Blksize: 4096, Blocks: (uint64(size) + 511) / 512,
	}
}
