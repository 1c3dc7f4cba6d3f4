package fs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mountpoint is a line of /proc/self/mountinfo.
type mountpoint struct {
	dir     string
	fstype  string
	options string // of the file system, not of the mount
}

// mountpoints returns all mounts of this namespace, oldest first.
func mountpoints() ([]mountpoint, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMountinfo(bytes.NewReader(b))
}

// parseMountinfo reads the format of proc_pid_mountinfo(5).
func parseMountinfo(r io.Reader) (mounts []mountpoint, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		head, tail, ok := strings.Cut(lines.Text(), " - ")
		left, right := strings.Fields(head), strings.Fields(tail)
		if !ok || len(left) < 6 || len(right) < 1 {
			return nil, fmt.Errorf("mountinfo: strange line %q", lines.Text())
		}
		m := mountpoint{dir: unescape.Replace(left[4]), fstype: right[0]}
		if len(right) > 2 {
			m.options = unescape.Replace(right[2])
		}
		mounts = append(mounts, m)
	}
	return mounts, lines.Err()
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// isMounted reports whether something is mounted at dir. It does not touch
// what is: that may be a FUSE mount that nobody serves.
func isMounted(dir string) (bool, error) {
	mounts, err := mountpoints()
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(mounts, func(m mountpoint) bool { return m.dir == dir }), nil
}

// unmountStale unmounts whatever a dead process left mounted at dir.
func unmountStale(dir string) error {
	for {
		mounted, err := isMounted(dir)
		if err != nil || !mounted {
			return err
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount what an earlier run left at %s: %w", dir, err)
		}
	}
}

// forgetContents makes every overlay that has dataDir among its lower
// directories forget where it found its files' contents: what it found in FUSE
// may be in the cache by now. overlayfs remembers that in its dentries, and the
// kernel drops those that are not in use when a file system is reconfigured.
// Nothing about the file system changes.
func forgetContents(dataDir string) error {
	mounts, err := mountpoints()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mounts {
		if m.fstype == "overlay" && hasLower(m.options, dataDir) {
			errs = append(errs, reconfigure(m))
		}
	}
	return errors.Join(errs...)
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
func reconfigure(m mountpoint) error {
	fd, err := unix.Fspick(unix.AT_FDCWD, m.dir, unix.FSPICK_CLOEXEC|unix.FSPICK_NO_AUTOMOUNT)
	if err != nil {
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil // it was unmounted meanwhile
		}
		return fmt.Errorf("reconfigure %s: %w", m.dir, err)
	}
	defer unix.Close(fd)
	// What is not said is taken to be writable.
	if slices.Contains(strings.Split(m.options, ","), "ro") {
		err = unix.FsconfigSetFlag(fd, "ro")
	}
	if err == nil {
		err = unix.FsconfigReconfigure(fd)
	}
	if err != nil {
		return fmt.Errorf("reconfigure %s: %w", m.dir, err)
	}
	return nil
}
