// Package disktest gives tests a small disk of their own, to fill.
package disktest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Mount makes an ext4 file system of sizeBytes on a loop device, mounts it, and
// returns where; both are gone when the test ends, and that something holds one of
// them is an error of the test. A few MiB less are free. The test needs root, and
// e2fsprogs.
func Mount(t testing.TB, sizeBytes int64) (dir string) {
	t.Helper()
	// Not below t.TempDir: what cannot be unmounted is not to be removed.
	image := filepath.Join(t.TempDir(), "disk")
	f, err := os.OpenFile(image, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(sizeBytes); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4 (of e2fsprogs): %v: %s", err, out)
	}
	loop, err := attach(f)
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close() // from then on it is the mount that keeps it attached
	if dir, err = os.MkdirTemp("", "disktest-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount(loop.Name(), dir, "ext4", unix.MS_NOATIME, ""); err != nil {
		t.Fatalf("mount %s at %s: %v", loop.Name(), dir, err)
	}
	t.Cleanup(func() {
		defer mustDetach(t, loop.Name(), image)
		err := unix.Unmount(dir, 0)
		if errors.Is(err, unix.EBUSY) {
			err = errors.Join(fmt.Errorf("%s is still in use when the test ends", dir), unix.Unmount(dir, unix.MNT_DETACH))
		}
		if err != nil {
			t.Error(err)
		}
	})
	return dir
}

// mustDetach waits until a loop device no longer has the image. The kernel takes
// it away some time after the last mount has gone, of which there may be more
// than ours: in another namespace, or bound to another place.
func mustDetach(t testing.TB, loop, image string) {
	t.Helper()
	file := filepath.Join("/sys/block", filepath.Base(loop), "loop", "backing_file")
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		name, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(name)) != image {
			return
		}
		if time.Now().After(end) {
			t.Errorf("%s still has %s when the test ends: somebody holds the disk", loop, image)
			return
		}
	}
}

// attach makes an image a loop device, which the kernel detaches on its last
// close.
func attach(image *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(image.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody else was faster
			return nil, fmt.Errorf("attach %s to %s: %w", image.Name(), loop.Name(), err)
		}
	}
}
