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
	id  string // of the normal snapshot
	run *Run
}

// parts splits a chain of parents, topmost first, into lower directories,
// topmost first.
func (s *Snapshotter) parts(parentIDs []string) ([]part, error) {
	var parts []part // built from the lowest up
	below := false
	for _, id := range slices.Backward(parentIDs) {
		rec, err := s.record(id)
		if err != nil {
			return nil, err
		}
		last := len(parts) - 1
		switch {
		case rec == nil:
			parts = append(parts, part{id: id})
			below = true
		case last >= 0 && parts[last].run != nil:
			parts[last].run.CIDs = append(parts[last].run.CIDs, rec.CID)
		default:
			parts = append(parts, part{run: &Run{CIDs: []string{rec.CID}, Below: below}})
		}
	}
	slices.Reverse(parts)
	return parts, nil
}

// lowers returns the lower directories of a chain of parents, topmost first,
// and whether there are lazy layers among them. The trees are mounted.
func (s *Snapshotter) lowers(ctx context.Context, parentIDs []string) (dirs []string, lazy bool, err error) {
	parts, err := s.parts(parentIDs)
	if err != nil {
		return nil, false, err
	}
	for _, p := range parts {
		dir := s.upper(p.id)
		if p.run != nil {
			lazy = true
			if dir, err = s.cfg.Lazy.Tree(ctx, *p.run); err != nil {
				return nil, false, fmt.Errorf("mount the names of lazy layers: %w", err)
			}
		}
		dirs = append(dirs, dir)
	}
	return dirs, lazy, nil
}

// mounts returns the mount of an active snapshot or a view.
func (s *Snapshotter) mounts(ctx context.Context, snap storage.Snapshot, info snapshots.Info) ([]mount.Mount, error) {
	dirs, lazy, err := s.lowers(ctx, snap.ParentIDs)
	if err != nil {
		return nil, err
	}
	switch {
	case len(dirs) == 0:
		// overlayfs wants a lower directory.
		how := "rw"
		if snap.Kind == snapshots.KindView {
			how = "ro"
		}
		return bind(s.upper(snap.ID), how), nil
	case len(dirs) == 1 && !lazy && snap.Kind == snapshots.KindView:
		return bind(dirs[0], "ro"), nil
	}
	var options []string
	if snap.Kind == snapshots.KindActive {
		options = append(options, "workdir="+s.work(snap.ID), "upperdir="+s.upper(snap.ID))
	}
	lower := strings.Join(dirs, ":")
	// A snapshot that a layer is unpacked into is written to through its upper
	// directory; of the others only names are wanted, and containerd would
	// take directories of contents for layers.
	if _, extract := info.Labels[snapshots.LabelSnapshotRef]; lazy && !extract {
		lower += "::" + strings.Join(s.cfg.DataDirs, "::")
	}
	options = append(options, "lowerdir="+lower, "index=off")
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}, nil
}

func bind(dir, how string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: dir, Options: []string{how, "rbind"}}}
}
