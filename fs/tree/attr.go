package tree

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// Attributes that the kernel gives a meaning of its own.
const (
	xattrACL        = "system.posix_acl_access"
	xattrDefaultACL = "system.posix_acl_default"
	xattrCapability = "security.capability"
)

// noID is the user or group number that chown(2) takes for "leave it".
const noID = 1<<32 - 1

// inherit gives a new inode what the kernel gives it from its directory.
func (in *inode) inherit(parent *inode) {
	if parent.mode&0o2000 != 0 {
		in.gid = parent.gid
	}
	acl := parent.xattr(xattrDefaultACL)
	if acl == nil || in.kind == layer.Symlink {
		return
	}
	if !aclMinimal(acl) {
		in.setXattr(xattrACL, acl)
	}
	if in.kind == layer.Dir {
		in.setXattr(xattrDefaultACL, acl)
	}
}

// setAttributes sets owner, extended attributes, mode and time from an entry, in
// the order in which containerd does, since each has effects on the others.
func (in *inode) setAttributes(e *layer.Entry) error {
	if e.UID != noID {
		in.uid = e.UID
	}
	if e.GID != noID {
		in.gid = e.GID
	}
	if in.kind != layer.Dir {
		in.removeXattr(xattrCapability) // chown(2) does, on a further link too
	}
	for _, x := range e.Xattrs {
		if err := in.applyXattr(x); err != nil {
			return err
		}
	}
	size := 0
	for _, x := range in.xattrs {
		size += len(x.Name) + len(x.Value)
	}
	if size > maxXattrs {
		return fmt.Errorf("%w: %d bytes of extended attributes (at most %d)", ErrLimit, size, maxXattrs)
	}
	if in.kind != layer.Symlink {
		in.chmod(e.Mode & 0o7777)
	}
	in.setTime(e.ModTime)
	return nil
}

// copyFrom copies the attributes of a lower layer's directory. Those that the new
// directory has already stay, but for ACLs: the kernel does not heed
// XATTR_CREATE for them.
func (in *inode) copyFrom(lower *inode) {
	in.uid, in.gid = lower.uid, lower.gid
	in.chmod(lower.mode)
	in.sec, in.nsec = lower.sec, lower.nsec
	for _, x := range lower.xattrs {
		acl := x.Name == xattrACL || x.Name == xattrDefaultACL
		if acl || in.xattr(x.Name) == nil {
			in.setXattr(x.Name, x.Value)
		}
	}
}

// chmod sets the mode, and with it the entries of an access ACL that mirror it.
func (in *inode) chmod(mode uint32) {
	in.mode = mode
	if acl := in.xattr(xattrACL); acl != nil {
		in.setXattr(xattrACL, aclChmod(acl, mode))
	}
}

// applyXattr sets an attribute of an entry, or drops it where containerd cannot
// set it and goes on: names outside the namespaces known, trusted.* (overlay's
// own among them), user.* on other than files and directories.
func (in *inode) applyXattr(x layer.Xattr) error {
	bad := func(why string) error { return fmt.Errorf("%w: %q: %s", ErrXattr, x.Name, why) }
	space, rest, _ := strings.Cut(x.Name, ".")
	switch {
	case x.Name == "" || len(x.Name) > maxName || strings.IndexByte(x.Name, 0) >= 0:
		return bad("name is empty, has a NUL or more than 255 bytes")
	case x.Name == xattrACL || x.Name == xattrDefaultACL:
		return in.applyACL(x, bad)
	case space != "user" && space != "security" || space == x.Name:
		return nil
	case rest == "":
		return bad("name has a namespace only")
	case space == "user" && in.kind != layer.Reg && in.kind != layer.Dir:
		return nil
	case len(x.Value) > maxXattrValue:
		return fmt.Errorf("%w: attribute %q of %d bytes (at most %d)", ErrLimit, x.Name, len(x.Value), maxXattrValue)
	case x.Name == xattrCapability && !validCapability(x.Value):
		return bad("not a capability set of version 2 or 3")
	}
	in.setXattr(x.Name, x.Value)
	return nil
}

// validCapability checks the header of struct vfs_ns_cap_data.
func validCapability(v []byte) bool {
	if len(v) < 4 {
		return false
	}
	switch binary.LittleEndian.Uint32(v) >> 24 {
	case 2:
		return len(v) == 20
	case 3:
		return len(v) == 24
	}
	return false
}

func (in *inode) find(name string) (int, bool) {
	return slices.BinarySearchFunc(in.xattrs, name, func(x layer.Xattr, name string) int {
		return strings.Compare(x.Name, name)
	})
}

func (in *inode) xattr(name string) []byte {
	if i, ok := in.find(name); ok {
		return in.xattrs[i].Value
	}
	return nil
}

func (in *inode) setXattr(name string, value []byte) {
	if value == nil {
		value = []byte{}
	}
	i, ok := in.find(name)
	if ok {
		in.xattrs[i].Value = value
	} else {
		in.xattrs = slices.Insert(in.xattrs, i, layer.Xattr{Name: name, Value: value})
	}
}

func (in *inode) removeXattr(name string) {
	if i, ok := in.find(name); ok {
		in.xattrs = slices.Delete(in.xattrs, i, i+1)
	}
}
