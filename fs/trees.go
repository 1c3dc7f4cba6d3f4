package fs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/ipfs-stargz/ipfs-stargz/fs/mounts"
	"github.com/ipfs-stargz/ipfs-stargz/fs/tree"
)

// trees are the merged names of runs of layers: built once, kept on disk,
// mounted while a container uses them.
type trees struct {
	root     string
	layers   *layers
	show     shower
	log      *slog.Logger
	locks    locks // by name: building and mounting one tree is done by one
	drafts   *drafts
	verified verified

	stateFiles bool // trees show them
}

// openTrees removes what an interrupted build left in root.
func openTrees(root string, ls *layers, log *slog.Logger) (*trees, error) {
	left, err := filepath.Glob(filepath.Join(root, "*", tmpPrefix+"*"))
	if err != nil {
		return nil, err
	}
	for _, p := range left {
		if err := os.Remove(p); err != nil {
			return nil, err
		}
	}
	return &trees{root: root, layers: ls, log: log, drafts: newDrafts()}, nil
}

// name returns the name of a run's tree.
func (ts *trees) name(run Run) (string, error) {
	ls, err := ts.layers.run(run.CIDs)
	if err != nil {
		return "", err
	}
	digests := make([]digest.Digest, len(ls), len(ls)+1)
	for i, l := range ls {
		digests[i] = l.meta.TOCDigest
	}
	if ts.stateFiles {
		digests = append(digests, stateDigest(ls))
	}
	return tree.Name(digests, run.Below), nil
}

func (ts *trees) dir(name string) string    { return filepath.Join(ts.root, name, "m") }
func (ts *trees) image(name string) string  { return filepath.Join(ts.root, name, "image") }
func (ts *trees) origin(name string) string { return filepath.Join(ts.root, name, "run") }

// mount returns where the tree of these layers is mounted, and builds and
// mounts it if it is not.
func (ts *trees) mount(ctx context.Context, run Run) (string, error) {
	name, err := ts.name(run)
	if err != nil {
		return "", err
	}
	unlock, err := ts.locks.lock(ctx, name)
	if err != nil {
		return "", err
	}
	defer unlock()
	dir := ts.dir(name)
	mounted, err := mounts.IsMounted(dir)
	if mounted || err != nil {
		return dir, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if err := ts.ready(ctx, name, run); err != nil {
		return "", errors.Join(err, ts.discard(name))
	}
	if err := ts.show.show(ctx, name, ts.image(name), dir); err != nil {
		return "", err
	}
	return dir, nil
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
	unlock, err := ts.locks.lock(context.Background(), name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := ts.show.hide(ts.dir(name)); err != nil {
		return err
	}
	if ts.current(name, cids) {
		return nil
	}
	return ts.discard(name)
}

// mounted returns the directories at which trees are mounted.
func (ts *trees) mounted() (map[string]bool, error) {
	all, err := mounts.Mounts()
	if err != nil {
		return nil, err
	}
	dirs := map[string]bool{}
	for _, m := range all {
		if m.Dir == ts.dir(filepath.Base(filepath.Dir(m.Dir))) {
			dirs[m.Dir] = true
		}
	}
	return dirs, nil
}

// current reports whether a tree's layers are all among cids and the
// directories below them are there: whether its image may be wanted again.
func (ts *trees) current(name string, cids []string) bool {
	o, err := ts.readOrigin(name)
	if err != nil {
		return false
	}
	for _, cid := range o.CIDs {
		if !slices.Contains(cids, cid) {
			return false
		}
	}
	for _, dir := range o.Below {
		if _, err := os.Lstat(dir); err != nil {
			return false
		}
	}
	return true
}
