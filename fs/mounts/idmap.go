package mounts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// IDMap maps a range of ids, as a line of /proc/PID/uid_map does.
type IDMap struct {
	Inside  uint32 // first id in the container; what a tree's files belong to
	Outside uint32 // first id on this machine
	Count   uint32
}

// mountMapped mounts an overlay whose lower layers are shown with other owners.
// The mounts that map them exist in a namespace of their own, and afterwards in
// the overlay only.
func mountMapped(set OptionSet, target string, o Overlay) error {
	fd := -1
	err := privately(func() error {
		userns, err := userNamespace(o.UIDs, o.GIDs)
		if err != nil {
			return err
		}
		defer userns.Close()
		// A place for mounts that no one else sees.
		if err := unix.Mount("tmpfs", target, "tmpfs", 0, "mode=700"); err != nil {
			return fmt.Errorf("mount tmpfs: %w", err)
		}
		mapped := o
		mapped.Lower = make([]string, len(o.Lower))
		for i, l := range o.Lower {
			mapped.Lower[i] = filepath.Join(target, strconv.Itoa(i))
			if err := mapOwners(l, mapped.Lower[i], userns); err != nil {
				return err
			}
		}
		merged := filepath.Join(target, "m")
		if err := os.Mkdir(merged, 0o700); err != nil {
			return err
		}
		if err := set.mount(merged, mapped); err != nil {
			return err
		}
		fd, err = unix.OpenTree(unix.AT_FDCWD, merged, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return moveMount(fd, target)
}

// mapOwners mounts dir at target, which it makes, with the owners that userns
// maps its own to.
func mapOwners(dir, target string, userns *os.File) error {
	fd, err := mappedClone(dir, userns)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := os.Mkdir(target, 0o700); err != nil {
		return err
	}
	return moveMount(fd, target)
}

// mappedClone returns a mount of dir, attached nowhere, with the owners that
// userns maps its own to.
func mappedClone(dir string, userns *os.File) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("clone the mount of %s: %w", dir, err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("map the owners of %s: %w (the kernel or the file system cannot: run the container without a user namespace)", dir, err)
	}
	return fd, nil
}

// userNamespace makes a user namespace with these mappings. It is called in a
// thread of its own, whose end nobody survives who is in it.
func userNamespace(uids, gids []IDMap) (*os.File, error) {
	if len(uids) == 0 || len(gids) == 0 {
		return nil, errors.New("map owners: users and groups have to be mapped both")
	}
	// Only a process can enter a new one, and only with a single thread: this
	// child, stopped before it runs anything.
	p, err := os.StartProcess("/proc/self/exe", []string{"user-namespace"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: idMappings(uids),
		GidMappings: idMappings(gids),
		Ptrace:      true,
		Pdeathsig:   unix.SIGKILL,
	}})
	if err != nil {
		return nil, fmt.Errorf("make a user namespace: %w (user.max_user_namespaces may forbid it)", err)
	}
	defer func() {
		_ = p.Kill()
		_, _ = p.Wait()
	}()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", p.Pid))
	if err != nil {
		return nil, fmt.Errorf("open a user namespace: %w", err)
	}
	return ns, nil
}

func idMappings(maps []IDMap) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, len(maps))
	for i, m := range maps {
		out[i] = syscall.SysProcIDMap{ContainerID: int(m.Inside), HostID: int(m.Outside), Size: int(m.Count)}
	}
	return out
}
