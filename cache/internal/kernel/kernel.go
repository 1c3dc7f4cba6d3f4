// Package kernel asks the kernel about single files, for the cache: whether
// anybody has one open, how much of it is in memory, whether it lives on after
// its last name is gone.
package kernel

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Opened reports whether a file is open or mapped anywhere but through f, which
// is open for reading only: by any process, in any namespace, through any file
// system stacked on the file's own. The error says that its file system cannot
// tell.
//
// It asks for a write lease, which only the one opener of a file gets, and gives
// it back at once. /proc would not do: of a file that is open through an overlay
// it shows the overlay's device and inode number. Who opens the file in between
// waits for that microsecond.
func Opened(f *os.File) (bool, error) {
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("ask who has %s open: %w", f.Name(), err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
		return false, fmt.Errorf("give back the lease of %s: %w", f.Name(), err)
	}
	return false, nil
}

// Cached returns how many pages of a file are in memory: none where the kernel
// cannot tell (before 6.5).
func Cached(f *os.File) uint64 {
	var all unix.CachestatRange // a length of 0 reaches to the end
	var st unix.Cachestat_t
	if unix.Cachestat(uint(f.Fd()), &all, &st, 0) != nil {
		return 0
	}
	return st.Cache
}

// Handle names an inode, also when it has no name any more.
type Handle struct{ h unix.FileHandle }

// HandleOf returns the handle of an open file. The error says that its file
// system has none.
func HandleOf(f *os.File) (Handle, error) {
	h, _, err := unix.NameToHandleAt(int(f.Fd()), "", unix.AT_EMPTY_PATH)
	return Handle{h}, err
}

// Lives returns how many bytes an inode occupies on the file system of dir; ok
// is false when it is gone. An inode without a name lives as long as anything in
// the kernel refers to it: an open file, a mapping, an overlay's cached name.
func (h Handle) Lives(dir *os.File) (bytes int64, ok bool) {
	fd, err := unix.OpenByHandleAt(int(dir.Fd()), h.h, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return 0, false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return 0, false
	}
	return st.Blocks * 512, true
}

// OpenDirect opens a file to read what the disk has, past the page cache, where
// its file system can.
func OpenDirect(path string) (*os.File, error) {
	const flags = os.O_RDONLY | unix.O_NOFOLLOW | unix.O_NOATIME
	f, err := os.OpenFile(path, flags|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		return os.OpenFile(path, flags, 0)
	}
	return f, err
}

// Idle has the calling thread's disk accesses wait for everybody else's, where
// the disk's scheduler knows of that. The caller has locked its goroutine to the
// thread.
func Idle() error {
	const whoThread, idle = 1, 3 << 13 // IOPRIO_WHO_PROCESS, IOPRIO_CLASS_IDLE
	if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, whoThread, 0, idle); errno != 0 {
		return errno
	}
	return nil
}

// Seal makes a file's contents unchangeable by fs-verity: the kernel verifies
// them at every read from disk, for ever. The file must not be open for writing
// anywhere.
func Seal(f *os.File) error {
	arg := unix.FsverityEnableArg{Version: 1, Hash_algorithm: unix.FS_VERITY_HASH_ALG_SHA256, Block_size: 4096}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.FS_IOC_ENABLE_VERITY, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return fmt.Errorf("enable fs-verity of %s: %w", f.Name(), errno)
	}
	return nil
}

// Sealed reports whether a file is sealed.
func Sealed(f *os.File) bool {
	var st unix.Statx_t
	err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_VERITY != 0
}
