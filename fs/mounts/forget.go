package mounts

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Forget makes every overlay that has dataDir among its lower directories
// forget where it found its files' contents: what it found in FUSE may be in the
// cache by now. overlayfs remembers that in its dentries, and the kernel drops
// those that are not in use when a file system is reconfigured. Nothing about
// the file system changes.
func Forget(dataDir string) error {
	mounts, err := Mounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mounts {
		if m.Type == "overlay" && hasLower(m.Options, dataDir) {
			errs = append(errs, reconfigure(m))
		}
	}
	return errors.Join(errs...)
}

// HasLower reports whether dir is among the lower directories of the overlay that
// is mounted at target.
func HasLower(target, dir string) (bool, error) {
	mounts, err := Mounts()
	if err != nil {
		return false, err
	}
	has := false
	for _, m := range mounts { // the newest is the one that shows
		if m.Dir == target {
			has = m.Type == "overlay" && hasLower(m.Options, dir)
		}
	}
	return has, nil
}

// hasLower reports whether dir is among an overlay's lower directories. The
// kernel writes them as one option, lowerdir=a:b::c, or as several, lowerdir+=
// and datadir+=.
func hasLower(options, dir string) bool {
	for o := range strings.SplitSeq(options, ",") {
		key, dirs, _ := strings.Cut(o, "=")
		switch key {
		case "lowerdir", "lowerdir+", "datadir+":
			if slices.Contains(strings.Split(dirs, ":"), dir) {
				return true
			}
		}
	}
	return false
}

// reconfigure asks a file system to reconfigure itself, with no option changed.
func reconfigure(m Mount) error {
	fd, err := unix.Fspick(unix.AT_FDCWD, m.Dir, unix.FSPICK_CLOEXEC|unix.FSPICK_NO_AUTOMOUNT)
	if err != nil {
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil // it was unmounted meanwhile
		}
		return fmt.Errorf("reconfigure %s: %w", m.Dir, err)
	}
	defer unix.Close(fd)
	// What is not said is taken to be writable.
	if slices.Contains(strings.Split(m.Options, ","), "ro") {
		err = unix.FsconfigSetFlag(fd, "ro")
	}
	if err == nil {
		err = unix.FsconfigReconfigure(fd)
	}
	if err != nil {
		return fmt.Errorf("reconfigure %s: %w", m.Dir, err)
	}
	return nil
}
