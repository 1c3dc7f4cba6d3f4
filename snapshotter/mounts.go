package snapshotter

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
)

// part is one lower directory of an overlay: a normal layer or a run of lazy
// ones.
type part struct {
	dir string
	run *Run // nil for a normal layer
}

// parts splits a chain of parents, topmost first, into lower directories,
// topmost first.
func (s *Snapshotter) parts(parentIDs []string) ([]part, error) {
	var parts []part // built from the lowest up
	for _, id := range slices.Backward(parentIDs) {
		rec, err := s.record(id)
		if err != nil {
			return nil, err
		}
		last := len(parts) - 1
		switch {
		case rec == nil:
			parts = append(parts, part{dir: s.upper(id)})
		case last >= 0 && parts[last].run != nil:
			parts[last].run.CIDs = append(parts[last].run.CIDs, rec.CID)
		default:
			parts = append(parts, part{run: &Run{CIDs: []string{rec.CID}}})
		}
	}
	slices.Reverse(parts)
	for i := len(parts) - 1; i >= 0; i-- {
		run := parts[i].run
		if run == nil {
			continue
		}
		// A tree's directory depends on those below it.
		run.Below = dirsOf(parts[i+1:])
		var err error
		if parts[i].dir, err = s.cfg.Lazy.TreeDir(*run); err != nil {
			return nil, err
		}
	}
	return parts, nil
}

// dirsOf returns the directories of parts.
func dirsOf(parts []part) []string {
	dirs := make([]string, len(parts))
	for i, p := range parts {
		dirs[i] = p.dir
	}
	return dirs
}

// lowers are the lower directories of an overlay.
type lowers struct {
	dirs []string // topmost first
	lazy bool     // there are trees of lazy layers among them
	over bool     // one of these lies over a normal layer
}

// lowers returns the lower directories for a chain of parents. The trees among
// them are mounted.
func (s *Snapshotter) lowers(ctx context.Context, parentIDs []string) (l lowers, err error) {
	parts, err := s.parts(parentIDs)
	if err != nil {
		return l, err
	}
	// The lowest first: what a tree has depends on what is below it.
	for _, p := range slices.Backward(parts) {
		if p.run == nil {
			continue
		}
		l.lazy, l.over = true, l.over || len(p.run.Below) > 0
		if _, err := s.cfg.Lazy.Tree(ctx, *p.run); err != nil {
			return l, fmt.Errorf("mount the names of lazy layers: %w", err)
		}
	}
	l.dirs = dirsOf(parts)
	return l, nil
}

// mounts returns the mount of an active snapshot or a view.
//
// An overlay with lazy layers in it is mounted here, and what is returned is a
// bind mount of it. containerd and others do more with an overlay's options
// than to mount them: they split them at colons, shorten them, read users'
// names out of lower directories (containerd 2.4), and an empty name among
// them, or a file that says its size and has no contents, is beyond them all.
func (s *Snapshotter) mounts(ctx context.Context, snap storage.Snapshot, info snapshots.Info) ([]mount.Mount, error) {
	lower, err := s.lowers(ctx, snap.ParentIDs)
	if err != nil {
		return nil, err
	}
	how := "rw"
	if snap.Kind == snapshots.KindView {
		how = "ro"
	}
	// A layer is unpacked straight into the upper directory of an overlay that
	// is never mounted.
	_, extract := info.Labels[snapshots.LabelSnapshotRef]
	switch {
	case len(lower.dirs) == 0:
		return bind(s.upper(snap.ID), how), nil // overlayfs wants a lower directory
	case lower.lazy && !extract:
		if err := s.mountOverlay(snap, lower); err != nil {
			return nil, err
		}
		return bind(s.merged(snap.ID), how), nil
	case len(lower.dirs) == 1 && snap.Kind == snapshots.KindView && !lower.lazy:
		return bind(lower.dirs[0], how), nil
	}
	options := []string{"index=off", "lowerdir=" + strings.Join(lower.dirs, ":")}
	if snap.Kind == snapshots.KindActive {
		options = append(options, "workdir="+s.work(snap.ID), "upperdir="+s.upper(snap.ID))
	}
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}, nil
}

func bind(dir, how string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: dir, Options: []string{how, "rbind"}}}
}
