package fs

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/fusetree"
	"github.com/ipfs-stargz/ipfs-stargz/fs/internal/backing"
	"github.com/ipfs-stargz/ipfs-stargz/fs/mounts"
	"github.com/ipfs-stargz/ipfs-stargz/fs/objects"
)

// byFUSE shows trees by serving their images. It is for where the kernel does not
// show them by itself. Where overlayfs can look for contents it serves names alone,
// so that who opens a file has nothing to do with FUSE once its contents are here;
// else it serves both.
type byFUSE struct {
	cfg     Config
	missing *missing // nil: trees have their contents themselves
	objects treeObjects
	live    fusetree.Live
	cache   *cache.Cache
	stats   *fusetree.Stats

	mu    sync.Mutex
	trees map[string]*servedTree // by directory
}

// servedTree is a tree that is mounted.
type servedTree struct {
	server *fusetree.Server
	image  *erofs.Image
}

func newByFUSE(cfg Config, missing *missing, from contents, stats *fusetree.Stats) *byFUSE {
	b := &byFUSE{
		cfg: cfg, missing: missing, objects: treeObjects{from.loader, from.cache}, cache: from.cache, stats: stats,
		trees: map[string]*servedTree{},
	}
	if missing == nil {
		b.live = from.live
	}
	return b
}

func (b *byFUSE) show(_ context.Context, _, image, dir string) error {
	im, err := erofs.Open(image)
	if err != nil {
		return err
	}
	server, err := fusetree.Mount(fusetree.Config{
		Dir: dir, Image: im, Names: b.missing != nil, Objects: b.objects, Live: b.live, Cache: b.cache.Dir(), SmallSize: b.cfg.SmallObject,
		Passthrough: backing.Limit, Stats: b.stats, Log: b.cfg.Log,
	})
	if err != nil {
		return errors.Join(err, im.Close())
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trees[dir] = &servedTree{server, im}
	return nil
}

func (b *byFUSE) hide(dir string) error {
	b.mu.Lock()
	t := b.trees[dir]
	delete(b.trees, dir)
	b.mu.Unlock()
	if t == nil {
		return mounts.Unmount(dir) // of an earlier process
	}
	return t.close()
}

func (t *servedTree) close() error {
	if err := t.server.Close(); err != nil {
		return err // the image may be in use still
	}
	return t.image.Close()
}

func (b *byFUSE) overlay(o mounts.Overlay) mounts.Overlay {
	if b.missing != nil {
		o.Data, o.Names = b.missing.dirs, true
	}
	return o
}

// close ends all trees. What has their files open gets errors from now on, but for
// contents that overlayfs found in the cache.
func (b *byFUSE) close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	if b.missing != nil {
		errs = append(errs, b.missing.Close())
	}
	for _, t := range b.trees {
		errs = append(errs, t.close())
	}
	clear(b.trees)
	return errors.Join(errs...)
}

// treeObjects is what package fusetree reads.
type treeObjects struct {
	*objects.Loader
	cache *cache.Cache
}

// Open implements [fusetree.Objects].
func (o treeObjects) Open(k cache.Key) (*os.File, error) { return o.cache.OpenObject(k) }

// hideOthers unmounts the trees below root that are of no use in a mode: those that
// a process of before served, for nobody answers there any more; and in mode fuse
// those that the kernel mounted, whose files have no contents.
func hideOthers(root, mode string) error {
	all, err := mounts.Mounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range all {
		if strings.HasPrefix(m.Dir, root+"/") && (mode == mounts.ModeFUSE || strings.HasPrefix(m.Type, "fuse")) {
			errs = append(errs, mounts.Unmount(m.Dir))
		}
	}
	return errors.Join(errs...)
}
