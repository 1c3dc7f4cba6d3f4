// Package fusetree serves a tree's image over FUSE, for where the kernel cannot
// mount it: mode fuse. With [Config.Names] the mount shows what the image shows in
// the kernel: names, and overlayfs' attributes that name what files contain, for an
// overlay that finds that in data-only layers. Without, files have their contents,
// and those attributes are not there: so it is an ordinary lower layer. What hides
// things of a layer below, whiteouts and opaque directories, is shown in any case.
//
// Nothing of an image ever changes but the contents of what is [Live], so the
// kernel is told once and for ever: entries and attributes without an end, names
// that are not there among them, listings with the attributes of what they list,
// symbolic links and contents that stay cached. What need not be asked at all is answered ENOSYS, on which the
// kernel never asks again: opening a directory, flushing a file, and attributes if
// the image has none.
//
// Of files with contents, one whose object is complete in the cache is read by the
// kernel itself (passthrough, see package backing). All others are read here, and
// fetched while they are read.
//
// The server keeps no state that the kernel relies on but that: a node's number is
// its nid in the image, and file handles say no more than which files package
// backing knows.
package fusetree

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/internal/backing"
	"github.com/ipfs-stargz/ipfs-stargz/fs/internal/readahead"
)

const (
	requestSize   = 1 << 20 // bytes, the largest FUSE allows by default
	namesSize     = 128 << 10
	maxBackground = 64 // read-aheads under way at once
)

// Objects gives what files contain, by key.
type Objects interface {
	// ReadAt reads from an offset on, and fetches what is missing of that. It
	// returns less than len(dst) bytes only at the object's end.
	ReadAt(ctx context.Context, key cache.Key, dst []byte, off int64) (int, error)
	// Load fetches all of an object, and reports whether it is complete in the
	// cache then.
	Load(ctx context.Context, key cache.Key) (complete bool, err error)
	// Open opens an object that is complete in the cache.
	Open(key cache.Key) (*os.File, error)
}

// Live is objects whose contents are made at each read. Their sizes do not change.
type Live interface {
	// Size reports whether an object is one of these.
	Size(key cache.Key) (size int64, ok bool)
	// Contents returns all of an object as it is now.
	Contents(ctx context.Context, key cache.Key) ([]byte, error)
}

// Config is what a [Server] needs.
type Config struct {
	Dir     string       // where to mount
	Image   *erofs.Image // open until the server is closed
	Names   bool         // names alone: what files contain is not asked for here
	Objects Objects      // not used with Names, nor is Live
	Live    Live         // asked before Objects; nil: there are none
	Cache   string       // a directory of the cache: its file system's space is what statfs(2) reports

	// SmallSize is up to which size in bytes an object is fetched whole when it
	// is first opened, so that already this open is read by the kernel itself.
	SmallSize int64
	// Passthrough is how many files the kernel may be given at once to read by
	// itself, see [backing.Limit]. With 0 all is read through FUSE.
	Passthrough int
	// IDMapped is for mounts that are to be id-mapped. Kernels before 6.12 cannot
	// have it.
	IDMapped bool

	// Stats counts what reaches this server, and others that are given the
	// same; nil: this one alone.
	Stats *Stats

	Log *slog.Logger
}

// Server serves an image at a mount point.
type Server struct {
	fuse.RawFileSystem
	cfg     Config
	image   *erofs.Image
	root    uint64 // nid
	xattrs  xattrs
	stats   *Stats
	waiting waiting
	fuse    *fuse.Server
	served  chan struct{} // closed when no request is answered any more
	pool    *backing.Pool // nil: the kernel reads nothing by itself
}

// Mount serves cfg.Image at cfg.Dir until [Server.Close]. It looks at all inodes
// of the image first.
func Mount(cfg Config) (*Server, error) {
	s := &Server{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		cfg:           cfg,
		image:         cfg.Image,
		root:          cfg.Image.Root(),
		stats:         cfg.Stats,
		waiting:       waiting{requests: map[uint64]context.CancelFunc{}},
		served:        make(chan struct{}),
	}
	if s.stats == nil {
		s.stats = new(Stats)
	}
	var err error
	if s.xattrs, err = surveyXattrs(cfg.Image, s.hidden); err != nil {
		return nil, err
	}
	if s.fuse, err = fuse.NewServer(s, cfg.Dir, s.options()); err != nil {
		return nil, fmt.Errorf("mount FUSE at %s (is /dev/fuse there, and the kernel's fuse module?): %w", cfg.Dir, err)
	}
	s.pool = s.newPool()
	go func() {
		defer close(s.served)
		s.fuse.Serve()
	}()
	if err := s.fuse.WaitMount(); err != nil {
		return nil, errors.Join(fmt.Errorf("mount FUSE at %s: %w", cfg.Dir, err), s.Close())
	}
	if err := readahead.Set(cfg.Dir, s.requestSize()); err != nil {
		cfg.Log.Debug("the kernel reads ahead by its own measure", "tree", cfg.Dir, "error", err)
	}
	return s, nil
}

// newPool returns the pool of backing files, nil if this kernel cannot have any of
// this cache: it is tried with a file that nobody sees.
func (s *Server) newPool() *backing.Pool {
	if s.cfg.Names || s.cfg.Passthrough <= 0 || s.fuse.KernelSettings().Flags64()&fuse.CAP_PASSTHROUGH == 0 {
		return nil
	}
	pool := backing.New(s.fuse, s.cfg.Passthrough, s.cfg.Log)
	const nobody = 0 // no node's number
	defer pool.Release(nobody)
	if _, ok := pool.Acquire(nobody, func() (*os.File, error) {
		return os.OpenFile(s.cfg.Cache, unix.O_TMPFILE|os.O_RDWR, 0o600)
	}); !ok {
		return nil
	}
	return pool
}

// requestSize is how many bytes a request may carry. A mount of names has
// listings at most, and each reader of requests has a buffer of that size.
func (s *Server) requestSize() int {
	if s.cfg.Names {
		return namesSize
	}
	return requestSize
}

func (s *Server) options() *fuse.MountOptions {
	return &fuse.MountOptions{
		Name:       "ipfs-stargz",
		FsName:     "ipfs-stargz",
		AllowOther: true,
		// The kernel checks permissions: it knows all that they depend on.
		Options:           []string{"default_permissions"},
		EnableAcl:         s.xattrs.acls,
		IDMappedMount:     s.cfg.IDMapped,
		DirectMountStrict: true,
		// As the kernel's mount of a tree: for being a lower layer only.
		DirectMountFlags: syscall.MS_RDONLY | syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC | syscall.MS_NOATIME,
		MaxWrite:         s.requestSize(),
		MaxReadAhead:     s.requestSize(),
		MaxBackground:    maxBackground,
		// Contents come as bytes, and splicing them would be one copy more.
		DisableSplice:            true,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		Logger:                   slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelWarn),
	}
}

// Close unmounts, also where overlays still use the mount, and returns when no
// request is under way: those that wait for contents fail. What is asked later
// fails, too.
func (s *Server) Close() error {
	s.waiting.end()
	if err := syscall.Unmount(s.cfg.Dir, syscall.MNT_DETACH|syscall.MNT_FORCE); err != nil {
		return fmt.Errorf("unmount %s: %w", s.cfg.Dir, err)
	}
	<-s.served
	return nil
}

// Stats returns the server's counters.
func (s *Server) Stats() *Stats { return s.stats }

// String implements [fuse.RawFileSystem].
func (s *Server) String() string { return "tree" }

// StatFs reports the file system that the cache is on.
func (s *Server) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.cfg.Cache, &st); err != nil {
		return fuse.ToStatus(err)
	}
	out.FromStatfsT(&st)
	return fuse.OK
}

// failed is the one place where an error becomes an errno.
func (s *Server) failed(what string, err error) fuse.Status {
	s.cfg.Log.Error(what+" failed", "tree", s.cfg.Dir, "error", err)
	return fuse.EIO
}
