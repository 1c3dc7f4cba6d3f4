// Package readahead sets how far the kernel reads ahead on a FUSE mount, which
// FUSE itself bounds to 128 KiB.
package readahead

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Set sets how many bytes the kernel reads ahead on the file system at dir. It
// needs a writable /sys, and is only for speed.
func Set(dir string, bytes int) error {
	path, err := setting(dir)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(strconv.Itoa(bytes>>10)), 0)
}

// setting is the file with a file system's read-ahead in KiB.
func setting(dir string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", err
	}
	return fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev)), nil
}
