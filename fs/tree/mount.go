package tree

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Reasons for which the kernel cannot mount an image, whatever it is; the same
// image can then be served otherwise.
var (
	// ErrNoEROFS is for a kernel without EROFS.
	ErrNoEROFS = errors.New("the kernel has no EROFS (load the module erofs, build it with CONFIG_EROFS_FS, or set mode = \"fuse\")")
	// ErrNoFileMount is for a kernel whose EROFS wants a block device.
	ErrNoFileMount = errors.New("the kernel cannot mount EROFS from a file (it takes Linux 6.12 with CONFIG_EROFS_FS_BACKED_BY_FILE, or set mode = \"fuse\")")
)

// Mount mounts an image at target, an existing directory, straight from its file:
// the image can be mounted again while it is, and its file unlinked.
//
// The mount is only for being a lower layer of overlayfs, so it gives no one else
// anything to run or open: device nodes and programs work through the overlay,
// which opens them under its own mount's flags. A kernel that cannot is reported by
// ErrNoEROFS or ErrNoFileMount.
func Mount(image, target string) error {
	err := unix.Mount(image, target, "erofs", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NOATIME, "")
	if err != nil {
		return fmt.Errorf("mount tree %s at %s: %w", image, target, mountError(err))
	}
	return nil
}

// mountError says what an error of mount(2) means for an image.
func mountError(err error) error {
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: %w", ErrNoEROFS, err)
	case errors.Is(err, unix.ENOTBLK):
		return fmt.Errorf("%w: %w", ErrNoFileMount, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w (mounting takes CAP_SYS_ADMIN in the initial user namespace)", err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EBADMSG):
		return fmt.Errorf("%w (not an EROFS image or a damaged one: remove it to have it built again; the kernel's log says more)", err)
	}
	return err
}

// Unmount undoes Mount. Overlays that have the tree as a layer keep it; what has
// files of it open goes on, and no one else finds it. It is no error if nothing is
// mounted at target.
func Unmount(target string) error {
	err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount tree %s: %w", target, err)
	}
	return nil
}
