package snapshotter

import (
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
)

// Overlay is what an overlay with lazy layers in it is made of. It is another
// name of a type that has none, so that whoever implements [Mounter] need not
// import this package.
type Overlay = struct {
	Lower       []string // topmost first
	Upper, Work string   // empty: read-only
	OverNormal  bool     // a tree in Lower lies over a directory that is none
}

// Mounter mounts overlays with trees of lazy layers among their lower
// directories. It knows where the contents of these layers' files are. Its
// methods are safe for concurrent use.
type Mounter interface {
	// MountOverlay mounts an overlay at target, a directory that it makes where
	// necessary. If one is mounted there already it does nothing.
	MountOverlay(target string, o Overlay) error
	// Unmount unmounts the overlay at target, also where it is in use still. It
	// is no error if none is mounted there.
	Unmount(target string) error
}

// mountOverlay mounts a snapshot's overlay over these lower directories. It is
// mounted until the snapshot is removed; after a restart of the machine, until
// it is next asked for, it is not.
func (s *Snapshotter) mountOverlay(snap storage.Snapshot, lower lowers) error {
	o := Overlay{Lower: lower.dirs, OverNormal: lower.over}
	if snap.Kind == snapshots.KindActive {
		o.Upper, o.Work = s.upper(snap.ID), s.work(snap.ID)
	}
	if err := s.cfg.Mounter.MountOverlay(s.merged(snap.ID), o); err != nil {
		return fmt.Errorf("snapshot %s: %w", snap.ID, err)
	}
	return nil
}

// unmountOverlay unmounts a snapshot's overlay, if it is mounted.
func (s *Snapshotter) unmountOverlay(id string) error {
	if err := s.cfg.Mounter.Unmount(s.merged(id)); err != nil {
		return fmt.Errorf("snapshot %s: %w", id, err)
	}
	return nil
}
