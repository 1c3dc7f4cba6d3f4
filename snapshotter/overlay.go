package snapshotter

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mountOverlay mounts a snapshot's overlay over these lower directories and the
// directories of contents. It is mounted until the snapshot is
// removed; after a restart of the machine, until it is next asked for, it is not.
func (s *Snapshotter) mountOverlay(snap storage.Snapshot, lower lowers) error {
	s.mounting.Lock()
	defer s.mounting.Unlock()
	dir := s.merged(snap.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	mounted, err := mountinfo.Mounted(dir)
	if err != nil || mounted {
		return err
	}
	o, err := newOverlay()
	if err != nil {
		return err
	}
	defer o.close()
	for _, l := range lower.dirs {
		o.set("lowerdir+", l)
	}
	for _, d := range s.cfg.DataDirs {
		o.set("datadir+", d)
	}
	if snap.Kind == snapshots.KindActive {
		o.set("upperdir", s.upper(snap.ID))
		o.set("workdir", s.work(snap.ID))
	}
	o.set("index", "off")
	if lower.over {
		// Only this way overlayfs looks past a normal layer for a file's
		// contents. It also makes a chmod in the container copy up no contents,
		// and a renamed directory a reference to the lower one, which only
		// overlays like this one understand; so it is not for all.
		o.set("metacopy", "on")
	}
	if err := o.mount(dir); err != nil {
		return fmt.Errorf("mount overlay of snapshot %s at %s: %w", snap.ID, dir, err)
	}
	return nil
}

// unmountOverlay unmounts a snapshot's overlay, also where it is in use still.
func (s *Snapshotter) unmountOverlay(id string) error {
	err := unix.Unmount(s.merged(id), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // EINVAL: it is not mounted
	}
	return fmt.Errorf("unmount overlay of snapshot %s: %w", id, err)
}

// overlay is an overlay on its way to be mounted, by the kernel's newer calls
// for that (fsopen(2)): they take one directory at a time, so that their number
// is not bounded by a page of options. The first error is kept.
type overlay struct {
	fd  int
	err error
}

func newOverlay() (*overlay, error) {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("the kernel has no overlayfs (load the module overlay): %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("fsopen overlay: %w", err)
	}
	return &overlay{fd: fd}, nil
}

func (o *overlay) close() { unix.Close(o.fd) }

func (o *overlay) set(key, value string) {
	if o.err != nil {
		return
	}
	if err := unix.FsconfigSetString(o.fd, key, value); err != nil {
		o.err = fmt.Errorf("%s=%s: %w%s", key, value, err, o.why())
	}
}

func (o *overlay) mount(dir string) error {
	if o.err != nil {
		return o.err
	}
	if err := unix.FsconfigCreate(o.fd); err != nil {
		return fmt.Errorf("%w%s", err, o.why())
	}
	m, err := unix.Fsmount(o.fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(m)
	return unix.MoveMount(m, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// why returns what the kernel has to say of the last error, if anything.
func (o *overlay) why() string {
	b := make([]byte, 1024)
	n, err := unix.Read(o.fd, b)
	if err != nil || n == 0 {
		return ""
	}
	return " (" + string(b[:n]) + ")"
}
