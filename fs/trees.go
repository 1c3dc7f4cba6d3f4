package fs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/mounts"
	"github.com/ipfs-stargz/ipfs-stargz/fs/tree"
)

// trees are the merged names of runs of layers: built once, kept on disk,
// mounted while a container uses them.
type trees struct {
	root   string
	layers *layers
	show   shower
	log    *slog.Logger

	mu    sync.Mutex
	locks map[string]*sync.Mutex // by name: building and mounting one tree is done by one
}

// openTrees removes what an interrupted build left in root.
func openTrees(root string, ls *layers, show shower, log *slog.Logger) (*trees, error) {
	left, err := filepath.Glob(filepath.Join(root, "*", tmpPrefix+"*"))
	if err != nil {
		return nil, err
	}
	for _, p := range left {
		if err := os.Remove(p); err != nil {
			return nil, err
		}
	}
	return &trees{root: root, layers: ls, show: show, log: log, locks: map[string]*sync.Mutex{}}, nil
}

// name returns the name of a run's tree.
func (ts *trees) name(run Run) (string, error) {
	digests := make([]digest.Digest, len(run.CIDs))
	for i, cid := range run.CIDs {
		l, ok := ts.layers.get(cid)
		if !ok {
			return "", fmt.Errorf("layer %s is not here (remove the image and pull it again)", cid)
		}
		digests[i] = l.meta.TOCDigest
	}
	return tree.Name(digests, run.Below), nil
}

// entries reads the names of a run's layers.
func (ts *trees) entries(ctx context.Context, cids []string) ([][]layer.Entry, error) {
	all := make([][]layer.Entry, len(cids))
	for i, cid := range cids {
		toc, err := layer.LoadTOC(ctx, filepath.Join(ts.layers.dir, cid))
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", cid, err)
		}
		all[i] = toc.Entries
	}
	return all, nil
}

// check returns why a run cannot be a tree because of its topmost layer. It is
// asked while that layer can still be unpacked instead. What lies below it in
// the run was checked before, and matters only where a normal layer lies below
// them all: a layer is to take after the directories that it does not name.
func (ts *trees) check(ctx context.Context, run Run) error {
	cids := run.CIDs
	var opts tree.Options
	if len(run.Below) > 0 {
		opts.Below = func(string) (bool, error) { return true, nil }
	} else {
		cids = cids[len(cids)-1:]
	}
	entries, err := ts.entries(ctx, cids)
	if err != nil {
		return err
	}
	return tree.Check(ctx, entries, opts)
}

func (ts *trees) dir(name string) string    { return filepath.Join(ts.root, name, "m") }
func (ts *trees) image(name string) string  { return filepath.Join(ts.root, name, "image") }
func (ts *trees) origin(name string) string { return filepath.Join(ts.root, name, "run") }

// lock takes the lock of a tree's name.
func (ts *trees) lock(name string) (unlock func()) {
	ts.mu.Lock()
	l := ts.locks[name]
	if l == nil {
		l = new(sync.Mutex)
		ts.locks[name] = l
	}
	ts.mu.Unlock()
	l.Lock()
	return l.Unlock
}

// mount returns where the tree of these layers is mounted, and builds and
// mounts it if it is not.
func (ts *trees) mount(ctx context.Context, run Run) (string, error) {
	name, err := ts.name(run)
	if err != nil {
		return "", err
	}
	defer ts.lock(name)()
	dir := ts.dir(name)
	mounted, err := mounts.IsMounted(dir)
	if mounted || err != nil {
		return dir, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if _, err := os.Stat(ts.image(name)); errors.Is(err, fs.ErrNotExist) {
		if err := ts.build(ctx, name, run); err != nil {
			return "", fmt.Errorf("build the tree of %d layers: %w", len(run.CIDs), err)
		}
	}
	if err := ts.show.show(ctx, name, ts.image(name), dir); err != nil {
		return "", err
	}
	return dir, nil
}

// build merges the layers' names into an image.
func (ts *trees) build(ctx context.Context, name string, run Run) error {
	entries, err := ts.entries(ctx, run.CIDs)
	if err != nil {
		return err
	}
	var opts tree.Options
	if len(run.Below) > 0 {
		below, err := ts.below(run.Below)
		if err != nil {
			return err
		}
		opts.Below = func(path string) (bool, error) {
			if ctx.Err() != nil {
				return false, ctx.Err()
			}
			return below.has(path)
		}
	}
	origin, err := json.Marshal(run)
	if err != nil {
		return err
	}
	if err := os.WriteFile(ts.origin(name), origin, 0o600); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(ts.image(name)), tmpPrefix)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = tree.Build(ctx, f, entries, opts)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), ts.image(name))
}

// below opens the directories below a run. What is not mounted would look like
// a tree with nothing in it.
func (ts *trees) below(dirs []string) (*below, error) {
	for _, dir := range dirs {
		if !strings.HasPrefix(dir, ts.root+"/") {
			continue
		}
		mounted, err := mounts.IsMounted(dir)
		if err != nil {
			return nil, err
		}
		if !mounted {
			return nil, fmt.Errorf("tree %s below is not mounted", dir)
		}
	}
	return openBelow(dirs)
}

// retain unmounts all trees but those at these directories, and removes the
// images of trees whose layers are not all kept, or lie on what is gone.
func (ts *trees) retain(cids, dirs []string) error {
	names, err := os.ReadDir(ts.root)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range names {
		errs = append(errs, ts.retainOne(e.Name(), cids, dirs))
	}
	return errors.Join(errs...)
}

func (ts *trees) retainOne(name string, cids, dirs []string) error {
	if slices.Contains(dirs, ts.dir(name)) {
		return nil
	}
	defer ts.lock(name)()
	if err := ts.show.hide(ts.dir(name)); err != nil {
		return err
	}
	if ts.current(name, cids) {
		return nil
	}
	// Not its directories' contents by force: should something be mounted
	// there after all, it is not to be deleted.
	for _, p := range []string{ts.dir(name), ts.image(name), ts.origin(name), filepath.Join(ts.root, name)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// current reports whether a tree's layers are all among cids and the
// directories below them are there: whether its image may be wanted again.
func (ts *trees) current(name string, cids []string) bool {
	origin, err := os.ReadFile(ts.origin(name))
	if err != nil {
		return false
	}
	var run Run
	if json.Unmarshal(origin, &run) != nil {
		return false
	}
	for _, cid := range run.CIDs {
		if !slices.Contains(cids, cid) {
			return false
		}
	}
	for _, dir := range run.Below {
		if _, err := os.Lstat(dir); err != nil {
			return false
		}
	}
	return true
}
