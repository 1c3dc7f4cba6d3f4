package fs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/ipfs-stargz/ipfs-stargz/fs/internal/durable"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/tree"
)

// check returns why a run cannot be a tree with its topmost layer. It is asked
// while that layer can still be unpacked instead. top has the layer's entries, if
// the caller knows them.
func (ts *trees) check(ctx context.Context, run Run, top []layer.Entry) error {
	name, err := ts.name(run)
	if err != nil {
		return err
	}
	m, err := ts.merge(ctx, run, top)
	if err != nil {
		return err
	}
	ts.drafts.put(name, m)
	return nil
}

// merge returns a run's layers merged. It takes the draft of the run, or else of as
// many of its lower layers as there is one of, and reads the others.
func (ts *trees) merge(ctx context.Context, run Run, top []layer.Entry) (*tree.Merge, error) {
	for n := len(run.CIDs); n > 0; n-- {
		name, err := ts.name(Run{CIDs: run.CIDs[:n], Below: run.Below})
		if err != nil {
			return nil, err
		}
		if m, ok := ts.drafts.take(name); ok {
			return m, ts.addLayers(ctx, m, run.CIDs[n:], top)
		}
	}
	m := tree.NewMerge(len(run.Below) > 0)
	return m, ts.addLayers(ctx, m, run.CIDs, top)
}

// addLayers adds layers to a merge, lowest first. Their tables of contents are read
// side by side, and merged as they come. top is as in check.
func (ts *trees) addLayers(ctx context.Context, m *tree.Merge, cids []string, top []layer.Entry) error {
	if len(cids) == 1 && top != nil {
		return m.Add(ctx, top)
	}
	read := make([]chan []layer.Entry, len(cids))
	for i := range read {
		read[i] = make(chan []layer.Entry, 1)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(1 + runtime.GOMAXPROCS(0))
	g.Go(func() error {
		for _, entries := range read {
			select {
			case e := <-entries:
				if err := m.Add(ctx, e); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for i, cid := range cids {
		g.Go(func() (err error) {
			entries := top
			if entries == nil || i < len(cids)-1 {
				entries, err = ts.layers.entries(ctx, cid)
			}
			read[i] <- entries
			return err
		})
	}
	return g.Wait()
}

// ready sees to it that a run's image is there and is what was once written: it
// builds it if it is not.
func (ts *trees) ready(ctx context.Context, name string, run Run) error {
	err := ts.verify(name)
	if err == nil {
		return nil
	}
	if !errors.Is(err, errNoImage) {
		ts.log.Warn("a tree's image is damaged: it is built again", "tree", name, "error", err)
	}
	if err := ts.build(ctx, name, run); err != nil {
		return fmt.Errorf("build the tree of %d layers: %w", len(run.CIDs), err)
	}
	built, err := stampOf(ts.image(name))
	if err == nil {
		ts.verified.add(name, built)
	}
	return err
}

// build merges the layers' names into an image.
func (ts *trees) build(ctx context.Context, name string, run Run) error {
	m, err := ts.merge(ctx, run, nil)
	defer ts.drafts.used()
	if err != nil {
		return err
	}
	if ts.stateFiles {
		ls, err := ts.layers.run(run.CIDs)
		if err == nil {
			err = addStateFiles(ctx, m, ls)
		}
		if err != nil {
			return err
		}
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
	var stats tree.Stats
	err = durable.Write(ts.image(name), func(f *os.File) error {
		stats, err = m.Write(ctx, f, opts)
		return err
	})
	if err != nil {
		return err
	}
	// Should this be lost in a crash the image is built again.
	b, err := json.Marshal(origin{Run: run, UUID: stats.UUID[:]})
	if err != nil {
		return err
	}
	return os.WriteFile(ts.origin(name), b, 0o600)
}

// origin is what a tree's directory says of its image.
type origin struct {
	Run
	UUID []byte // the image's, a hash of its contents
}

// readOrigin returns what a tree was built from.
func (ts *trees) readOrigin(name string) (o origin, err error) {
	b, err := os.ReadFile(ts.origin(name))
	if err == nil {
		err = json.Unmarshal(b, &o)
	}
	return o, err
}

// discard removes what there is of a tree that is not mounted.
func (ts *trees) discard(name string) error {
	ts.verified.remove(name)
	// Not its directories' contents by force: should something be mounted
	// there after all, it is not to be deleted.
	for _, p := range []string{ts.dir(name), ts.image(name), ts.origin(name), filepath.Join(ts.root, name)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
