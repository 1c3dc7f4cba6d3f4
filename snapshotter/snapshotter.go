// Package snapshotter is a containerd snapshotter whose layers may be lazy:
// committed before their bytes are here.
//
// A layer that is pulled normally is what it is for containerd's overlay
// snapshotter: a directory that the layer was unpacked into. A lazy one is a
// record (which CID, which table of contents) that [Snapshotter.Prepare] makes
// when containerd names the layer that it is about to unpack (the remote
// snapshotter protocol); package fs, behind the interfaces [Lazy] and
// [Mounter], does the rest. Both kinds may lie above one another in any order: every maximal run
// of lazy layers is one directory among the overlay's lower ones.
//
// Layout below the root:
//
//	metadata.db   containerd's own store of names, parents and labels
//	s/<id>/fs     upper directory of a normal snapshot
//	s/<id>/work   overlayfs' work directory
//	s/<id>/m      where its overlay is mounted, if lazy layers are in it
//	s/<id>/lazy   a lazy snapshot's record, JSON
package snapshotter

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
)

// Run is lazy layers that lie directly on one another. It is another name of a
// type that has none, so that whoever implements [Lazy] need not import this
// package.
type Run = struct {
	CIDs  []string // lowest first
	Below []string // the overlay's lower directories below them, topmost first: deletions in the run have to show there
}

// Lazy makes layers readable that are not here yet. Its methods are safe for
// concurrent use.
type Lazy interface {
	// Add readies the layer with this CID to be the top of a run: it fetches
	// its table of contents, verifies it against tocDigest ("" when the image
	// names none), and checks that its names can lie on those of the run.
	// blobDigest is what the image calls the layer, "" when that is not known. It
	// returns what the layer takes on disk before any file is read, in bytes,
	// and how many names it has. Any error means that the layer cannot be
	// lazy, and says why.
	Add(ctx context.Context, cid, tocDigest, blobDigest string, on Run) (diskBytes, names int64, err error)
	// Tree returns a directory with the merged names of a run; it mounts it
	// where necessary. Trees among the directories below the run are mounted
	// already. It asks nothing of the network.
	Tree(ctx context.Context, run Run) (dir string, err error)
	// TreeDir returns the directory that Tree would return.
	TreeDir(run Run) (dir string, err error)
	// Retain forgets all layers and unmounts all trees but these. It is
	// quick, and asks nothing of the network or of FUSE.
	Retain(cids, treeDirs []string) error
}

// Finder finds a layer of an image that says nothing of it but its own root
// CID and the layer's digest.
type Finder interface {
	// Find returns the layer's CID, and the digest of its table of contents
	// where the image names it.
	Find(ctx context.Context, root, layerDigest string) (cid, tocDigest string, err error)
}

// Config is what a [Snapshotter] needs.
type Config struct {
	Root    string // directory of its state
	Lazy    Lazy
	Mounter Mounter
	Finder  Finder

	// ResolveTimeout is for how long Prepare may ask the network whether a
	// layer can be lazy. containerd cannot collect garbage meanwhile.
	ResolveTimeout time.Duration

	Log *slog.Logger
}

// Snapshotter implements [snapshots.Snapshotter] and [snapshots.Cleaner].
type Snapshotter struct {
	cfg Config
	ms  *storage.MetaStore

	// use is held for reading while a layer or a tree is got ready and is not
	// in the metadata yet, and for writing while what is unused is removed.
	use     sync.RWMutex
	pending pendingSet

	records sync.Map // snapshot id → *record, or nil for a normal snapshot

	closeOnce sync.Once
	closeErr  error
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New opens the snapshotter in cfg.Root, and removes what an earlier process
// left behind unused.
func New(cfg Config) (*Snapshotter, error) {
	if err := os.MkdirAll(filepath.Join(cfg.Root, "s"), 0o700); err != nil {
		return nil, fmt.Errorf("open snapshotter: %w", err)
	}
	ok, err := fs.SupportsDType(cfg.Root)
	if err != nil {
		return nil, fmt.Errorf("open snapshotter: %w", err)
	}
	if !ok {
		return nil, fmt.Errorf("open snapshotter: the file system of %s does not tell file types in directories, which overlayfs needs (xfs: mkfs with ftype=1)", cfg.Root)
	}
	ms, err := storage.NewMetaStore(filepath.Join(cfg.Root, "metadata.db"))
	if err != nil {
		return nil, fmt.Errorf("open snapshotter: %w", err)
	}
	s := &Snapshotter{cfg: cfg, ms: ms}
	if err := s.Cleanup(context.Background()); err != nil {
		ms.Close()
		return nil, fmt.Errorf("open snapshotter: %w", err)
	}
	return s, nil
}

// Close closes the metadata. Mounts stay: containers use them.
func (s *Snapshotter) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.ms.Close() })
	return s.closeErr
}

// Stat returns the info of a snapshot by its key or name.
func (s *Snapshotter) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	return info, err
}

// Update changes a snapshot's labels. A lazy snapshot's record is no label, so
// nothing can take it away.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (updated snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		updated, err = storage.UpdateInfo(ctx, info, fieldpaths...)
		return err
	})
	return updated, err
}

// Usage returns what a snapshot takes on disk. For a lazy one that is its
// record and tables, and the number of its names: files that were fetched are
// in the cache, which many snapshots share and none owns.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	var (
		id    string
		info  snapshots.Info
		usage snapshots.Usage
	)
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		id, info, usage, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil || info.Kind != snapshots.KindActive {
		return usage, err
	}
	return diskUsage(ctx, s.upper(id))
}

func diskUsage(ctx context.Context, dir string) (snapshots.Usage, error) {
	du, err := fs.DiskUsage(ctx, dir)
	return snapshots.Usage(du), err
}

// Walk calls fn with every snapshot that the filters let through.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	return s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		if empty(ctx) {
			return nil
		}
		return storage.WalkInfo(ctx, fn, filters...)
	})
}

// empty reports whether there never was a snapshot: the store then lacks the
// bucket that its functions look into.
func empty(ctx context.Context) bool {
	_, err := storage.IDMap(ctx)
	return errdefs.IsNotFound(err)
}

func (s *Snapshotter) dir(id string) string    { return filepath.Join(s.cfg.Root, "s", id) }
func (s *Snapshotter) upper(id string) string  { return filepath.Join(s.dir(id), "fs") }
func (s *Snapshotter) merged(id string) string { return filepath.Join(s.dir(id), "m") }
func (s *Snapshotter) work(id string) string   { return filepath.Join(s.dir(id), "work") }
