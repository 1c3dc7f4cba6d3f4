package mounts

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// loopTries bounds how often another process may be faster to take a free loop
// device.
const loopTries = 64

// attachLoop makes a read-only loop device of a file. It is detached when
// nobody has it open or mounted any more.
func attachLoop(image string) (*os.File, error) {
	f, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w (load the module loop, and see that /dev is the machine's own)", err)
	}
	defer control.Close()
	for range loopTries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		dev, err := os.Open(fmt.Sprintf("/dev/loop%d", n))
		if err != nil {
			return nil, fmt.Errorf("%w (see that /dev is the machine's own)", err)
		}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &unix.LoopConfig{
			Fd: uint32(f.Fd()),
			Info: unix.LoopInfo64{
				// Direct I/O, so that no page is kept twice; the kernel leaves
				// it out where the file system below has none.
				Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO,
			},
		})
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) { // EBUSY: somebody else was given it too
			return nil, fmt.Errorf("make %s of %s: %w", dev.Name(), image, err)
		}
	}
	return nil, fmt.Errorf("no free loop device after %d tries", loopTries)
}
