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
	// dataDirs are the directories that hold the contents of the trees' files,
	// in the order in which overlayfs is to ask them; none when trees have
	// their contents themselves.
	dataDirs() []string
	close() error
}

// ChooseMode finds out in which mode lazy layers are mounted when mode is asked
// for and dir is on the file system of a node's state.
func ChooseMode(ctx context.Context, dir, mode string) (mounts.Choice, error) {
	kernel, probeErr := mounts.Probe(ctx, dir)
	c, err := mounts.Choose(mode, kernel, probeErr)
	if err != nil {
		return c, fmt.Errorf("this machine cannot mount lazy layers: %w", err)
	}
	return c, nil
}

// newShower returns what shows trees in the mode that was chosen.
func newShower(cfg Config, c mounts.Choice, cached *cache.Cache, loader *objects.Loader, live objects.Live, stats *fusetree.Stats) (shower, error) {
	if c.Mode == mounts.ModeFUSE {
		return newByFUSE(cfg, cached, loader, live, stats), nil
	}
	return newByKernel(cfg, c.Kernel, cached, loader, live)
}

// byKernel shows trees by EROFS, and has overlayfs look for contents: in the
// cache, and then in a FUSE file system of what is missing there.
type byKernel struct {
	kernel  *mounts.Kernel
	data    []string
	objects *objects.Server
}

func newByKernel(cfg Config, kernel *mounts.Kernel, cached *cache.Cache, loader *objects.Loader, live objects.Live) (*byKernel, error) {
	dir := filepath.Join(cfg.Root, "fuse")
	if err := mounts.UnmountStale(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	server, err := objects.Mount(objects.Config{
		Dir: dir, SmallSize: cfg.SmallObject, Patience: cfg.LookupPatience, Live: live, Log: cfg.Log,
	}, loader)
	if err != nil {
		return nil, err
	}
	return &byKernel{kernel: kernel, data: []string{cached.Dir(), dir}, objects: server}, nil
}

func (b *byKernel) show(_ context.Context, _, image, dir string) error {
	return b.kernel.MountTree(image, dir)
}

func (b *byKernel) hide(dir string) error { return mounts.Unmount(dir) }
func (b *byKernel) dataDirs() []string    { return b.data }

// close leaves trees and overlays mounted: what is in the cache reads on.
func (b *byKernel) close() error { return b.objects.Close() }

// Mode returns the mode in which lazy layers are mounted, and why.
func (f *FS) Mode() mounts.Choice { return f.mode }

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
	data := f.show.dataDirs()
	if mounted {
		lives := false
		if len(data) > 0 {
			if lives, err = mounts.HasLower(target, data[0]); err != nil {
				return err
			}
		}
		if lives {
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
	err = f.mode.Kernel.MountOverlay(target, mounts.Overlay{
		Lower: o.Lower, Data: data, Upper: o.Upper, Work: o.Work, OverNormal: o.OverNormal,
	})
	if err != nil {
		return err
	}
	f.live[target] = true
	return nil
}

// Unmount unmounts the overlay at target, also where it is in use still. It is
// no error if none is mounted there.
func (f *FS) Unmount(target string) error {
	f.overlays.Lock()
	defer f.overlays.Unlock()
	delete(f.live, target)
	return mounts.Unmount(target)
}
