package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/fusetree"
	"github.com/ipfs-stargz/ipfs-stargz/fs/mounts"
	"github.com/ipfs-stargz/ipfs-stargz/fs/objects"
)

// shower makes trees visible in one of the modes.
type shower interface {
	// show mounts a tree's image at dir, where nothing is mounted.
	show(ctx context.Context, name, image, dir string) error
	// hide unmounts the tree at dir, if one is mounted there.
	hide(dir string) error
	// overlay adds to an overlay over trees what it needs for contents.
	overlay(o mounts.Overlay) mounts.Overlay
	close() error
}

// ChooseMode finds out in which mode lazy layers are mounted when mode is asked
// for and dir is on the file system of a node's state.
func ChooseMode(ctx context.Context, dir, mode string) (mounts.Choice, error) {
	return chooseMode(ctx, dir, mode, mounts.Probe)
}

func chooseMode(ctx context.Context, dir, mode string, probe Probe) (mounts.Choice, error) {
	kernel, probeErr := probe(ctx, dir)
	c, err := mounts.Choose(mode, kernel, probeErr)
	if err != nil {
		return c, fmt.Errorf("this machine cannot mount lazy layers: %w", err)
	}
	return c, nil
}

// contents is where what trees' files contain comes from.
type contents struct {
	cache  *cache.Cache
	loader *objects.Loader
	live   objects.Live // nil: there is none
}

// newShower returns what shows trees in the mode that was chosen.
func newShower(cfg Config, c mounts.Choice, from contents, stats *fusetree.Stats) (shower, error) {
	// Of an earlier process, in whatever mode it was.
	for _, name := range []string{missingDir, missingByNames} {
		if err := mounts.UnmountStale(filepath.Join(cfg.Root, name)); err != nil {
			return nil, err
		}
	}
	name := missingDir
	if c.Mode == mounts.ModeFUSE {
		if c.Kernel.Names == "" {
			return newByFUSE(cfg, nil, from, stats), nil
		}
		name = missingByNames
	}
	missing, err := serveMissing(cfg, name, from)
	if err != nil {
		return nil, err
	}
	if c.Mode == mounts.ModeFUSE {
		return newByFUSE(cfg, missing, from, stats), nil
	}
	return &byKernel{kernel: c.Kernel, missing: missing}, nil
}

// Where what is missing in the cache is served, below the root: by mode, so that an
// overlay shows in which it was mounted.
const (
	missingDir     = "fuse"
	missingByNames = "fuse-names" // mode fuse
)

// missing is where overlayfs finds contents: in the cache, and then in a FUSE
// file system of what is missing there.
type missing struct {
	*objects.Server
	dirs []string // in the order in which overlayfs is to ask them
}

// serveMissing serves it at a directory of this name.
func serveMissing(cfg Config, name string, from contents) (*missing, error) {
	dir := filepath.Join(cfg.Root, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	server, err := objects.Mount(objects.Config{
		Dir: dir, SmallSize: cfg.SmallObject, Patience: cfg.LookupPatience, Live: from.live, Log: cfg.Log,
	}, from.loader)
	if err != nil {
		return nil, err
	}
	return &missing{Server: server, dirs: []string{from.cache.Dir(), dir}}, nil
}

// byKernel shows trees by EROFS, and has overlayfs look for contents.
type byKernel struct {
	kernel  *mounts.Kernel
	missing *missing
}

func (b *byKernel) show(_ context.Context, _, image, dir string) error {
	return b.kernel.MountTree(image, dir)
}

func (b *byKernel) hide(dir string) error { return mounts.Unmount(dir) }

func (b *byKernel) overlay(o mounts.Overlay) mounts.Overlay {
	o.Data = b.missing.dirs
	return o
}

// close leaves trees and overlays mounted: what is in the cache reads on.
func (b *byKernel) close() error { return b.missing.Close() }

// Overlay is what the overlay of a container is made of. It is another name of
// a type that has none, which the snapshotter has too.
type Overlay = struct {
	Lower       []string // topmost first
	Upper, Work string   // empty: read-only
	OverNormal  bool     // a tree in Lower lies over a directory that is none
}

// MountOverlay mounts an overlay at target, which it makes where necessary. One
// that is mounted already is left as it is, unless it has contents from trees
// that an earlier daemon served: that is mounted anew, for whoever asks for it
// next.
func (f *FS) MountOverlay(target string, o Overlay) error {
	f.overlays.Lock()
	defer f.overlays.Unlock()
	mounted, err := mounts.IsMounted(target)
	if err != nil {
		return err
	}
	if mounted && f.live[target] {
		return nil
	}
	all := f.show.overlay(mounts.Overlay{
		Lower: o.Lower, Upper: o.Upper, Work: o.Work, OverNormal: o.OverNormal,
	})
	if mounted {
		lasts, err := f.lasts(target, all)
		if err != nil {
			return err
		}
		if lasts {
			f.live[target] = true
			return nil
		}
		if err := mounts.Unmount(target); err != nil {
			return err
		}
	}
	if err := os.Mkdir(target, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := f.mode.Kernel.MountOverlay(target, all); err != nil {
		return err
	}
	f.live[target] = true
	return nil
}

// lasts reports whether the overlay at target, which an earlier process mounted, is
// as good as a new one, o: if its trees are served by nobody. In which mode it was
// mounted shows in its last data directory.
func (f *FS) lasts(target string, o mounts.Overlay) (bool, error) {
	if f.mode.Mode != mounts.ModeKernel {
		return false, nil
	}
	return mounts.HasLower(target, o.Data[len(o.Data)-1])
}

// Unmount unmounts the overlay at target, also where it is in use still. It is
// no error if none is mounted there.
func (f *FS) Unmount(target string) error {
	f.overlays.Lock()
	defer f.overlays.Unlock()
	delete(f.live, target)
	return mounts.Unmount(target)
}
