package snapshotter

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// Prepare makes an active snapshot on top of parent.
//
// When its labels name the committed snapshot that it is to become (containerd
// is about to fetch and unpack a layer), and the layer can be lazy, that
// snapshot is committed at once and the error is [errdefs.ErrAlreadyExists]:
// containerd then goes on to the next layer.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return nil, err
		}
	}
	if target := info.Labels[snapshots.LabelSnapshotRef]; target != "" {
		log := s.cfg.Log.With("target", target)
		committed, err := s.prepareLazy(ctx, key, parent, target, info.Labels)
		switch {
		case committed:
			return nil, fmt.Errorf("lazy snapshot %q: %w", target, errdefs.ErrAlreadyExists)
		case err != nil:
			log.Warn("layer cannot be lazy: it is fetched whole and unpacked", "reason", err)
		default:
			log.Debug("layer has no CID: it is fetched whole and unpacked")
		}
	}
	return s.create(ctx, snapshots.KindActive, key, parent, opts)
}

// View makes a read-only snapshot of parent.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindView, key, parent, opts)
}

// Mounts returns how an active snapshot or a view is mounted. Trees that are
// not mounted any more, since the machine was restarted, are mounted again.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	s.use.RLock()
	defer s.use.RUnlock()
	var (
		snap storage.Snapshot
		info snapshots.Info
	)
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		if snap, err = storage.GetSnapshot(ctx, key); err != nil {
			return fmt.Errorf("mounts of snapshot %q: %w", key, err)
		}
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.mounts(ctx, snap, info)
}

// Commit makes an active snapshot a committed one.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		id, _, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return err
		}
		usage, err := diskUsage(ctx, s.upper(id))
		if err != nil {
			return err
		}
		if _, err := storage.CommitActive(ctx, key, name, usage, opts...); err != nil {
			return fmt.Errorf("commit snapshot %q: %w", key, err)
		}
		return nil
	})
}

// create makes an active snapshot or a view. The tree of its lazy parents is
// mounted last, outside the transaction; if that fails, nothing is left.
func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) (_ []mount.Mount, err error) {
	s.use.RLock()
	defer s.use.RUnlock()
	var (
		snap storage.Snapshot
		info snapshots.Info
	)
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) (err error) {
		if snap, err = storage.CreateSnapshot(ctx, kind, key, parent, opts...); err != nil {
			return fmt.Errorf("create snapshot %q: %w", key, err)
		}
		if _, info, _, err = storage.GetInfo(ctx, key); err != nil {
			return err
		}
		return s.makeDir(snap)
	})
	if err != nil {
		return nil, err
	}
	m, err := s.mounts(ctx, snap, info)
	if err != nil {
		// Not with ctx: it may be what failed.
		_ = s.ms.WithTransaction(context.WithoutCancel(ctx), true, func(ctx context.Context) error {
			_, _, err := storage.Remove(ctx, key)
			return err
		})
		_ = os.RemoveAll(s.dir(snap.ID))
		return nil, err
	}
	return m, nil
}

// makeDir makes a normal snapshot's directories. Ids are never used twice, so
// what is in the way is left from a transaction that was not committed.
func (s *Snapshotter) makeDir(snap storage.Snapshot) (err error) {
	dir := s.dir(snap.ID)
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("make snapshot directory: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir)
			err = fmt.Errorf("make snapshot directory: %w", err)
		}
	}()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	upper := filepath.Join(dir, "fs")
	if err := os.Mkdir(upper, 0o755); err != nil {
		return err
	}
	if snap.Kind == snapshots.KindActive {
		if err := os.Mkdir(filepath.Join(dir, "work"), 0o711); err != nil {
			return err
		}
	}
	// The root of what is mounted belongs to whom it belonged to in the
	// parent. A lazy layer's root belongs to root, as a new directory does.
	if len(snap.ParentIDs) == 0 {
		return nil
	}
	if rec, err := s.record(snap.ParentIDs[0]); err != nil || rec != nil {
		return err
	}
	st, err := os.Stat(s.upper(snap.ParentIDs[0]))
	if err != nil {
		return err
	}
	owner := st.Sys().(*syscall.Stat_t)
	return os.Lchown(upper, int(owner.Uid), int(owner.Gid))
}
