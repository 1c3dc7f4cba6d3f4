package mounts

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// privately calls fn in a thread that has a mount namespace of its own and dies
// with it: what fn leaves mounted is gone afterwards, also when the process is
// killed meanwhile.
func privately(fn func() error) error {
	return inOwnThread(func() error {
		// A thread of Go shares working directory and root with the others, and
		// whoever shares them cannot leave a mount namespace.
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("make a mount namespace: %w (it takes CAP_SYS_ADMIN: run as root)", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make the mounts of a namespace private: %w", err)
		}
		return fn()
	})
}

// inOwnThread calls fn in a thread that nobody uses afterwards.
func inOwnThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		if unix.Gettid() == unix.Getpid() {
			// The first thread does not end, and /proc/self is about it. While
			// it is locked here, the next one is another.
			defer runtime.UnlockOSThread()
			done <- inOwnThread(fn)
			return
		}
		done <- fn()
	}()
	return <-done
}
