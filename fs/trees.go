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

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/tree"
)

// trees are the merged names of runs of layers: built once, kept on disk,
// mounted while a container uses them.
type trees struct {
	root     string
	layers   *layers
	log      *slog.Logger
	locks    locks // by name: building and mounting one tree is done by one
	drafts   *drafts
	verified verified
}

// openTrees removes what an interrupted build left in root.
func openTrees(root string, ls *layers, log *slog.Logger) (*trees, error) {
	left, err := filepath.Glob(filepath.Join(root, "*", tmpPrefix+"*"))
	if err != nil {
		return nil, err
	}
	probes, err := filepath.Glob(filepath.Join(root, tmpPrefix+"*"))
	if err != nil {
		return nil, err
	}
	for _, p := range append(left, probes...) {
		if err := os.Remove(p); err != nil {
			return nil, err
		}
	}
	return &trees{root: root, layers: ls, log: log, drafts: newDrafts()}, nil
}

// probe finds out, by doing it, whether this kernel can mount a tree.
func (ts *trees) probe(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(filepath.Dir(ts.root), "probe-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	f, err := os.CreateTemp(ts.root, tmpPrefix)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = tree.Build(ctx, f, [][]layer.Entry{{{Name: "probe", Type: layer.Dir}}}, tree.Options{})
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := tree.Mount(f.Name(), dir); err != nil {
		return err
	}
	return tree.Unmount(dir)
}

// name returns the name of a run's tree.
func (ts *trees) name(run Run) (string, error) {
	digests := make([]digest.Digest, len(run.CIDs))
	for i, cid := range run.CIDs {
		l, ok := ts.layers.get(cid)
		if !ok {
			return "", errNotHere(cid)
		}
		digests[i] = l.meta.TOCDigest
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
	mounted, err := isMounted(dir)
	if mounted || err != nil {
		return dir, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if err := ts.ready(ctx, name, run); err != nil {
		return "", errors.Join(err, ts.discard(name))
	}
	if err := tree.Mount(ts.image(name), dir); err != nil {
		return "", err
	}
	return dir, nil
}

// below opens the directories below a run. What is not mounted would look like
// a tree with nothing in it.
func (ts *trees) below(dirs []string) (*below, error) {
	mounts, err := mountpoints()
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		if strings.HasPrefix(dir, ts.root+"/") && !slices.ContainsFunc(mounts, func(m mountpoint) bool { return m.dir == dir }) {
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
	mounted, err := isMounted(ts.dir(name))
	if err != nil {
		return err
	}
	if mounted {
		if err := tree.Unmount(ts.dir(name)); err != nil {
			return err
		}
	}
	if ts.current(name, cids) {
		return nil
	}
	return ts.discard(name)
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
