package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// Remove forgets a snapshot, and unmounts the trees that nothing else uses.
// Its files are removed by [Snapshotter.Cleanup], which containerd calls
// after it has removed what it wants removed: they may be many.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	var id string
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) (err error) {
		if id, _, err = storage.Remove(ctx, key); err != nil {
			return fmt.Errorf("remove snapshot %q: %w", key, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.records.Delete(id)
	if err := errors.Join(s.unmountOverlay(id), s.sweep(ctx)); err != nil {
		// The snapshot is gone all the same; the next sweep tries again.
		s.cfg.Log.Warn("remove what the snapshot used", "snapshot", key, "error", err)
	}
	return nil
}

// Cleanup removes the files of snapshots that are gone.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	trash := filepath.Join(s.cfg.Root, "trash")
	if err := os.MkdirAll(trash, 0o700); err != nil {
		return err
	}
	// Moved out of the way in a write transaction, since that is where
	// snapshots' directories are made: an id that was never committed is
	// given out again.
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		ids, err := storage.IDMap(ctx)
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		dirs, err := os.ReadDir(s.dir(""))
		if err != nil {
			return err
		}
		for _, d := range dirs {
			if _, ok := ids[d.Name()]; ok {
				continue
			}
			// What is mounted is not for us to delete.
			if err := s.unmountOverlay(d.Name()); err != nil {
				return err
			}
			bin, err := os.MkdirTemp(trash, "")
			if err != nil {
				return err
			}
			if err := os.Rename(s.dir(d.Name()), filepath.Join(bin, d.Name())); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := os.RemoveAll(trash); err != nil {
		s.cfg.Log.Warn("remove the files of snapshots that are gone", "error", err)
	}
	return s.sweep(ctx)
}

// sweep tells [Lazy] what is in use. It is all derived from the metadata: there
// is no count that a crash could make wrong. A snapshot that cannot be read
// keeps nothing, and no other from being counted.
func (s *Snapshotter) sweep(ctx context.Context) error {
	s.use.Lock()
	defer s.use.Unlock()
	cids := s.pending.all()
	var trees []string
	err := s.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		c, t, err := s.uses(ctx, info)
		if err != nil {
			s.cfg.Log.Warn("cannot tell what a snapshot uses", "snapshot", info.Name, "error", err)
		}
		cids, trees = append(cids, c...), append(trees, t...)
		return nil
	})
	if err != nil {
		return err
	}
	return s.cfg.Lazy.Retain(cids, trees)
}

// uses returns the layer that a committed snapshot is, or the trees that
// another is mounted with.
func (s *Snapshotter) uses(ctx context.Context, info snapshots.Info) (cids, trees []string, err error) {
	if info.Kind == snapshots.KindCommitted {
		id, _, _, err := storage.GetInfo(ctx, info.Name)
		if err != nil {
			return nil, nil, err
		}
		rec, err := s.record(id)
		if err != nil || rec == nil {
			return nil, nil, err
		}
		return []string{rec.CID}, nil, nil
	}
	snap, err := storage.GetSnapshot(ctx, info.Name)
	if err != nil {
		return nil, nil, err
	}
	parts, err := s.parts(snap.ParentIDs)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range parts {
		if p.run != nil {
			trees = append(trees, p.dir)
		}
	}
	return nil, trees, nil
}
