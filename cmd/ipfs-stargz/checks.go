package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/config"
	"github.com/ipfs-stargz/ipfs-stargz/fs/mounts"
	"github.com/ipfs-stargz/ipfs-stargz/image"
	"github.com/ipfs-stargz/ipfs-stargz/image/progress"
)

// existing returns the nearest directory on the way to path that is there: the
// daemon makes the rest.
func existing(path string) (string, error) {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist) && path != filepath.Dir(path):
		return existing(filepath.Dir(path))
	case err == nil && !st.IsDir():
		return "", fmt.Errorf("%s is no directory", path)
	}
	return path, err
}

func checkRights() check {
	c := check{Name: "rights", vital: true, OK: os.Geteuid() == 0, Detail: "runs as root"}
	if !c.OK {
		c.Detail, c.Mend = fmt.Sprintf("runs as user %d", os.Geteuid()), "run it as root, as the daemon does: nobody else can mount"
	}
	return c
}

// fsNames are file systems by what statfs(2) says of their type.
var fsNames = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", unix.NFS_SUPER_MAGIC: "nfs", unix.FUSE_SUPER_MAGIC: "fuse", unix.F2FS_SUPER_MAGIC: "f2fs",
}

// checkRoot looks at the file system on which everything is kept, and on which
// overlays write.
func checkRoot(root, dir string, err error) check {
	c := check{Name: "root", vital: true}
	var st unix.Statfs_t
	if err == nil {
		err = unix.Statfs(dir, &st)
	}
	if err != nil {
		c.Detail, c.Mend = err.Error(), "set root in the configuration to a directory, or make it one"
		return c
	}
	name := fsNames[st.Type]
	if name == "" {
		name = fmt.Sprintf("a file system of type %#x", st.Type)
	}
	c.OK, c.Detail = true, fmt.Sprintf("%s is on %s", root, name)
	switch st.Type {
	case unix.OVERLAYFS_SUPER_MAGIC, unix.NFS_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC:
		c.OK, c.Mend = false, "overlays cannot write there: set root to a directory on ext4, xfs or btrfs, in a container to a volume"
	}
	return c
}

// kernelChecks are what [mounts.Probe] found.
func kernelChecks(choice mounts.Choice) []check {
	k := choice.Kernel
	if k == nil {
		return nil // the mode says why
	}
	erofs := check{Name: "EROFS", OK: k.Trees != "", Detail: "mounted from a " + string(k.Trees)}
	data := check{Name: "overlayfs over EROFS", OK: k.Data != "", Detail: "takes data-only layers, by " + string(k.Data)}
	names := check{Name: "overlayfs over FUSE", OK: k.Names != "", Detail: "takes data-only layers, by " + string(k.Names)}
	plain := check{Name: "overlayfs", vital: true, OK: k.Plain != "", Detail: "by " + string(k.Plain)}
	mapped := check{Name: "user namespaces", OK: k.IDMapped, Detail: "owners in trees can be mapped"}
	for _, f := range []struct {
		c          *check
		kind, mend string
	}{
		{&erofs, mounts.StepTree, "load the module erofs (Linux 6.12 mounts it from files; before, load the module loop too), or do without: mode auto then takes fuse"},
		{&data, mounts.StepData, "it takes Linux 6.5, and root on ext4, xfs or btrfs; or do without: mode auto then takes fuse"},
		{&names, mounts.StepNames, "it takes Linux 6.5, and root on ext4, xfs or btrfs; or do without: mode fuse then serves contents too"},
		{&plain, mounts.StepPlain, "load the module overlay, and set root to a directory on ext4, xfs or btrfs"},
		{&mapped, mounts.StepOwners, "run containers without user namespaces, or allow these (sysctl user.max_user_namespaces)"},
	} {
		if !f.c.OK {
			f.c.Detail, f.c.Mend = k.Reasons(f.kind), f.mend
			if f.c.Detail == "" {
				f.c.Detail = "could not be tried without what failed above"
			}
		}
	}
	return []check{plain, erofs, data, names, mapped}
}

func checkMode(asked string, choice mounts.Choice, err error) check {
	c := check{Name: "mode", vital: true, OK: err == nil, Detail: fmt.Sprintf("%s (fs.mode = %q): %s", choice.Mode, asked, choice.Why)}
	if err != nil {
		c.Detail, c.Mend = err.Error(), "mend what failed above"
	}
	return c
}

func checkFUSE() check {
	c := check{Name: "FUSE", vital: true, OK: true, Detail: "/dev/fuse is there"}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		c.OK, c.Detail, c.Mend = false, err.Error(), "load the module fuse; in a container, give it the device"
		return c
	}
	f.Close()
	return c
}

// checkSpace holds what is free against what is to stay free and the budget.
func checkSpace(dir string, cfg config.IPFS) check {
	c := check{Name: "space"}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Blocks == 0 {
		c.Detail, c.Mend = fmt.Sprintf("the size of the file system of %s is not to be had (%v)", dir, err), "set root to a directory on ext4, xfs or btrfs"
		return c
	}
	free, all := int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
	keep := all / 100 * int64(cfg.KeepFreePercent)
	c.OK = free > keep
	c.Detail = fmt.Sprintf("%s of %s are free, of which %s stay free; up to %s of blocks are kept",
		progress.Bytes(free), progress.Bytes(all), progress.Bytes(keep), progress.Bytes(int64(cfg.Budget)))
	if cfg.Budget == 0 {
		c.Detail = fmt.Sprintf("%s of %s are free, of which %s stay free; blocks are kept without a limit", progress.Bytes(free), progress.Bytes(all), progress.Bytes(keep))
	}
	if !c.OK {
		c.Mend = "make room, or lower ipfs.keep_free_percent: no block is kept as it is, and all is fetched again"
	}
	return c
}

// checkContainerd is not vital: containerd may be set up later.
func checkContainerd(ctx context.Context, containerd image.Containerd) check {
	c := check{Name: "containerd", OK: true, Detail: "has the snapshotter " + image.DefaultSnapshotter}
	if err := containerd.Check(ctx, image.DefaultSnapshotter); err != nil {
		c.OK = false
		if c.Detail, c.Mend, _ = strings.Cut(err.Error(), "; "); c.Mend == "" {
			c.Mend = "see containerd's log"
		}
	}
	return c
}
