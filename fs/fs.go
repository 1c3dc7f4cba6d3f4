// Package fs makes lazy layers into directories that the kernel reads.
//
// It keeps, for each layer, what is needed to read it (package layer), merges
// the names of a run of layers into one EROFS image and mounts that (package
// tree), and serves the contents that are missing (package objects) out of
// those that are here (package cache). An overlay over trees
// ([FS.MountOverlay]) is the file system of a container.
//
// Layout below the root:
//
//	layers/<cid>/   a layer's table of contents, its objects' chunks, its record
//	trees/<name>/   image: the EROFS image of a run of layers; m: where it is
//	                mounted; run: the layers it was built from and the
//	                directories below them, JSON
//	cache/          see package cache
//	fuse/           where missing objects are served; in mode fuse, fuse-names/
package fs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/fusetree"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/mounts"
	"github.com/ipfs-stargz/ipfs-stargz/fs/objects"
	"github.com/ipfs-stargz/ipfs-stargz/fs/prefetch"
)

// Opener opens a layer's blob by its CID.
type Opener func(ctx context.Context, cid string) (layer.Source, error)

// Config is what an [FS] needs.
type Config struct {
	Root string // directory of its state and its mounts
	Open Opener

	// Mode is how lazy layers are mounted: [mounts.ModeAuto],
	// [mounts.ModeKernel] or [mounts.ModeFUSE].
	Mode string
	// Probe finds out what the kernel can do; nil: [mounts.Probe].
	Probe Probe

	// StateFiles has each tree show how much of its layers is here, in
	// /.stargz-snapshotter.
	StateFiles bool

	// SmallObject and LookupPatience are the file system's part of
	// [objects.Config].
	SmallObject    int64
	LookupPatience time.Duration

	// Cache is how much is kept, and how often it is verified; where, what for
	// and the log are ours to say.
	Cache    cache.Options
	Prefetch prefetch.Config

	Log *slog.Logger
}

// Probe has the form of [mounts.Probe].
type Probe func(ctx context.Context, dir string) (*mounts.Kernel, error)

// FS is the lazy layers of a node, and their mounts.
type FS struct {
	cfg      Config
	mode     mounts.Choice
	show     shower
	cache    *cache.Cache
	layers   *layers
	trees    *trees
	uses     *uses
	loader   *objects.Loader
	prefetch *prefetch.Prefetcher

	treeStats fusetree.Stats // of mode fuse

	overlays sync.Mutex      // held while one is mounted, so that none is mounted twice
	live     map[string]bool // overlays that are known to be mounted and served, by directory
}

// New opens the state in cfg.Root, finds out how this machine mounts lazy
// layers, and serves missing objects. The trees that containers use are mounted
// still, or again when they are next asked for. ctx bounds the finding out.
func New(ctx context.Context, cfg Config) (_ *FS, err error) {
	f := &FS{cfg: cfg, live: map[string]bool{}}
	undo := func(what func() error) {
		if err != nil {
			err = errors.Join(err, what())
		}
	}
	for _, d := range []string{"layers", "trees"} {
		// Nobody but root reads what is below: an image's files are its own.
		if err := os.MkdirAll(filepath.Join(cfg.Root, d), 0o700); err != nil {
			return nil, fmt.Errorf("open layers: %w", err)
		}
	}
	if cfg.Probe == nil {
		cfg.Probe = mounts.Probe
	}
	if f.mode, err = chooseMode(ctx, cfg.Root, cfg.Mode, cfg.Probe); err != nil {
		return nil, err
	}
	cfg.Log.Info("lazy layers are mounted by "+f.mode.Mode, "why", f.mode.Why)
	if f.layers, err = openLayers(filepath.Join(cfg.Root, "layers"), cfg.Open, cfg.Log); err != nil {
		return nil, err
	}
	defer func() { undo(f.layers.close) }()
	if f.trees, err = openTrees(filepath.Join(cfg.Root, "trees"), f.layers, cfg.Log); err != nil {
		return nil, err
	}
	f.uses = &uses{layers: f.layers, trees: f.trees, log: cfg.Log}
	cfg.Cache.Dir, cfg.Cache.Layers, cfg.Cache.Log = filepath.Join(cfg.Root, "cache"), f.uses, cfg.Log
	if f.cache, err = cache.Open(cfg.Cache); err != nil {
		return nil, err
	}
	defer func() { undo(f.cache.Close) }()
	f.loader = objects.NewLoader(f.layers, f.cache)
	f.prefetch = prefetch.New(cfg.Prefetch, ahead{f.loader, f.cache}, cfg.Log)
	defer func() {
		if err != nil {
			f.prefetch.Close()
		}
	}()
	var live objects.Live
	if cfg.StateFiles {
		f.trees.stateFiles = true
		live = &stateFiles{f.layers, f.prefetch.Count}
	}
	if err := hideOthers(f.trees.root, f.mode.Mode); err != nil {
		return nil, err
	}
	if f.show, err = newShower(cfg, f.mode, contents{f.cache, f.loader, live}, &f.treeStats); err != nil {
		return nil, err
	}
	f.trees.show = f.show
	// A daemon that was killed left overlays behind whose files point at its
	// dead mount. Those that are in the cache need not.
	f.uses.Forget(f.cache.Dir())
	f.resume()
	return f, nil
}

// Close stops serving. In mode kernel trees and the overlays over them stay
// mounted: what is in the cache reads on.
func (f *FS) Close() error {
	f.prefetch.Close()
	err := f.show.close()
	f.loader.Close()
	f.uses.Forget(f.cache.Dir())
	f.trees.drafts.close()
	return errors.Join(err, f.cache.Close(), f.layers.close()) // in this order: the cache asks the layers
}

// Run is lazy layers that lie directly on one another. It is another name of a
// type that has none, which the snapshotter has too.
type Run = struct {
	CIDs  []string // lowest first
	Below []string // the overlay's lower directories below them, topmost first: deletions in the run have to show there
}

// Add readies the layer with this CID to be the top of a run: it fetches its
// table of contents, verifies it against tocDigest ("" when the image names
// none), keeps it, and checks that its names can lie on those of the run. Any
// error means that the layer cannot be lazy. blobDigest is what images call the
// layer ("" when that is not known): it is told and not verified. Prefetching the
// layer begins, and is not waited for.
func (f *FS) Add(ctx context.Context, cid, tocDigest, blobDigest string, on Run) (diskBytes, names int64, err error) {
	l, entries, err := f.layers.add(ctx, cid, tocDigest, blobDigest)
	if err != nil {
		return 0, 0, err
	}
	on.CIDs = append(slices.Clone(on.CIDs), cid)
	err = f.trees.check(ctx, on, entries)
	for range on.CIDs {
		if !errors.Is(err, layer.ErrDamaged) {
			break
		}
		// One of the layers turned out to be damaged here: fetch it again.
		if err = f.layers.mend(ctx, on.CIDs); err == nil {
			err = f.trees.check(ctx, on, entries)
		}
	}
	if err != nil {
		return 0, 0, err
	}
	f.prefetch.Add(prefetched{l})
	return l.meta.DiskBytes, l.meta.Names, nil
}

// Tree returns a directory with the merged names of a run of layers, and mounts
// it where necessary. Trees among those below the run are mounted already.
func (f *FS) Tree(ctx context.Context, run Run) (string, error) {
	dir, err := f.trees.mount(ctx, run)
	if err == nil {
		f.prefetch.Use(run.CIDs)
		f.uses.touch(run.CIDs)
	}
	return dir, err
}

// TreeDir returns the directory that [FS.Tree] would return.
func (f *FS) TreeDir(run Run) (string, error) {
	name, err := f.trees.name(run)
	if err != nil {
		return "", err
	}
	return f.trees.dir(name), nil
}

// Retain forgets all layers but those with these CIDs, and unmounts all trees
// but those at these directories.
func (f *FS) Retain(cids, treeDirs []string) error {
	f.prefetch.Retain(cids)
	f.uses.touchMounted()
	return errors.Join(f.trees.retain(cids, treeDirs), f.layers.retain(cids))
}
