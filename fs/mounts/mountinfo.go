package mounts

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount is a line of /proc/self/mountinfo.
type Mount struct {
	Dir     string
	Type    string
	Source  string
	Options string // of the file system, not of the mount
}

// Mounts returns all mounts of this namespace, oldest first.
func Mounts() ([]Mount, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parse(bytes.NewReader(b))
}

// parse reads the format of proc_pid_mountinfo(5).
func parse(r io.Reader) (mounts []Mount, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		head, tail, ok := strings.Cut(lines.Text(), " - ")
		left, right := strings.Fields(head), strings.Fields(tail)
		if !ok || len(left) < 6 || len(right) < 1 {
			return nil, fmt.Errorf("mountinfo: strange line %q", lines.Text())
		}
		m := Mount{Dir: unescape.Replace(left[4]), Type: right[0]}
		if len(right) > 1 {
			m.Source = unescape.Replace(right[1])
		}
		if len(right) > 2 {
			m.Options = unescape.Replace(right[2])
		}
		mounts = append(mounts, m)
	}
	return mounts, lines.Err()
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// IsMounted reports whether something is mounted at dir. It does not touch
// what is: that may be a FUSE mount that nobody serves.
func IsMounted(dir string) (bool, error) {
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	mounts, err := Mounts()
	if err != nil {
		return false, err
	}
	dir = filepath.Join(parent, filepath.Base(dir))
	return slices.ContainsFunc(mounts, func(m Mount) bool { return m.Dir == dir }), nil
}

// Unmount unmounts what is mounted at dir. What has files of it open goes on,
// and so does an overlay that has it as a layer; no one else finds it. It is no
// error if nothing is mounted there.
func Unmount(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // EINVAL: it is not mounted
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// UnmountStale unmounts whatever a dead process left mounted at dir, however
// many times.
func UnmountStale(dir string) error {
	for {
		mounted, err := IsMounted(dir)
		if err != nil || !mounted {
			return err
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount what an earlier run left at %s: %w", dir, err)
		}
	}
}
