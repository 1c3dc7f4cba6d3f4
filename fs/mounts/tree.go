package mounts

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// treeFlags are those of a tree's mount. It is only for being a lower layer of
// overlayfs, so it gives no one else anything to run or open: device nodes and
// programs work through the overlay, which opens them under its own mount's
// flags.
const treeFlags = unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NOATIME

// MountTree mounts the image of a tree at target, an existing directory. The
// image can be mounted again while it is, and its file unlinked.
func (k *Kernel) MountTree(image, target string) error {
	var err error
	switch k.Trees {
	case FromFile:
		err = unix.Mount(image, target, "erofs", treeFlags, "")
	case FromLoop:
		err = mountLoop(image, target)
	default:
		err = errors.New("this kernel cannot mount trees (set fs.mode = \"auto\")")
	}
	if err != nil {
		return fmt.Errorf("mount tree %s at %s: %w", image, target, explain(err))
	}
	return nil
}

// mountLoop mounts an image through a loop device, which goes when its last
// mount does.
func mountLoop(image, target string) error {
	dev, err := attachLoop(image)
	if err != nil {
		return err
	}
	// From here on the mount holds the device; without one it goes now, also
	// when this process dies.
	defer dev.Close()
	return unix.Mount(dev.Name(), target, "erofs", treeFlags, "")
}

// explain adds to an error of mount(2) what it means for a tree.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w (the kernel has no EROFS: load the module erofs, or build it with CONFIG_EROFS_FS)", err)
	case errors.Is(err, unix.ENOTBLK):
		return fmt.Errorf("%w (EROFS from a file takes Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE, and a file that is not on overlayfs)", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w (mounting takes CAP_SYS_ADMIN in the initial user namespace)", err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EBADMSG):
		return fmt.Errorf("%w (not an EROFS image or a damaged one: remove it to have it built again; the kernel's log says more)", err)
	}
	return err
}
