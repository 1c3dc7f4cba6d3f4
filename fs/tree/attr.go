package tree

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// Attributes that the kernel gives a meaning of its own.
const (
	xattrACL        = erofs.XattrACL
	xattrDefaultACL = erofs.XattrDefaultACL
	xattrCapability = "security.capability"
)

// noID is the user or group number that chown(2) takes for "leave it".
const noID = 1<<32 - 1

// inherit gives a new inode what the kernel gives it from its directory.
func (m *Merge) inherit(in, parent *inode) error {
	if parent.mode&0o2000 != 0 {
		in.gid = parent.gid
	}
	acl := parent.xattr(xattrDefaultACL)
	if acl == nil || in.kind == layer.Symlink {
		return nil
	}
	if m.inherited += len(acl); m.inherited > maxInherited {
		return fmt.Errorf("%w: more than %d bytes of inherited ACLs", ErrLimit, maxInherited)
	}
	if !aclMinimal(acl) {
		in.setXattr(xattrACL, acl)
	}
	if in.kind == layer.Dir {
		in.setXattr(xattrDefaultACL, acl)
	}
	return nil
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
	if err := in.applyXattrs(e.Xattrs); err != nil {
		return err
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

// copyFrom copies the attributes of a lower layer's directory. What a new directory
// has before are ACLs, and the lower one's replace them: the kernel does not heed
// XATTR_CREATE there.
func (in *inode) copyFrom(lower *inode) {
	in.uid, in.gid = lower.uid, lower.gid
	in.chmod(lower.mode)
	in.sec, in.nsec = lower.sec, lower.nsec
	in.xattrs = mergeXattrs(in.xattrs, lower.xattrs)
}

// chmod sets the mode, and with it the entries of an access ACL that mirror it.
func (in *inode) chmod(mode uint32) {
	in.mode = mode
	if acl := in.xattr(xattrACL); acl != nil {
		in.setXattr(xattrACL, aclChmod(acl, mode))
	}
}

// applyXattrs sets the attributes of an entry.
func (in *inode) applyXattrs(xattrs []layer.Xattr) error {
	set := make([]layer.Xattr, 0, len(xattrs))
	for _, x := range xattrs {
		if x.Name == xattrACL || x.Name == xattrDefaultACL {
			if err := in.applyACL(x); err != nil {
				return err
			}
			continue
		}
		keep, err := keepXattr(in.kind, x)
		if err != nil {
			return err
		}
		if keep {
			set = append(set, x)
		}
	}
	in.xattrs = mergeXattrs(in.xattrs, set)
	return nil
}

// keepXattr reports whether an attribute is kept. It is dropped where containerd
// cannot set it and goes on: names outside the namespaces known, trusted.*
// (overlay's own among them), user.* on other than files and directories.
func keepXattr(kind layer.Type, x layer.Xattr) (bool, error) {
	space, rest, _ := strings.Cut(x.Name, ".")
	switch {
	case x.Name == "" || len(x.Name) > maxName || strings.IndexByte(x.Name, 0) >= 0:
		return false, badXattr(x, "name is empty, has a NUL or more than 255 bytes")
	case space != "user" && space != "security" || space == x.Name:
		return false, nil
	case rest == "":
		return false, badXattr(x, "name has a namespace only")
	case space == "user" && kind != layer.Reg && kind != layer.Dir:
		return false, nil
	case len(x.Value) > erofs.MaxXattrValue:
		return false, fmt.Errorf("%w: attribute %q of %d bytes (at most %d)", ErrLimit, x.Name, len(x.Value), erofs.MaxXattrValue)
	case x.Name == xattrCapability && !validCapability(x.Value):
		return false, badXattr(x, "not a capability set of version 2 or 3")
	}
	return true, nil
}

func badXattr(x layer.Xattr, why string) error {
	return fmt.Errorf("%w: %q: %s", ErrXattr, x.Name, why)
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

// An inode's list of attributes is sorted, and never modified: inodes share lists.

// mergeXattrs returns the attributes of two sorted lists, those of the second where
// both have one.
func mergeXattrs(a, b []layer.Xattr) []layer.Xattr {
	if len(a) == 0 {
		return b
	}
	if len(b) == 0 {
		return a
	}
	out := make([]layer.Xattr, 0, len(a)+len(b))
	for len(a) > 0 || len(b) > 0 {
		order := 1
		if len(b) == 0 {
			order = -1
		} else if len(a) > 0 {
			order = strings.Compare(a[0].Name, b[0].Name)
		}
		if order < 0 {
			out, a = append(out, a[0]), a[1:]
			continue
		}
		if order == 0 {
			a = a[1:]
		}
		out, b = append(out, b[0]), b[1:]
	}
	return out
}

func (in *inode) findXattr(name string) (int, bool) {
	return slices.BinarySearchFunc(in.xattrs, name, func(x layer.Xattr, name string) int {
		return strings.Compare(x.Name, name)
	})
}

func (in *inode) xattr(name string) []byte {
	if i, ok := in.findXattr(name); ok {
		return in.xattrs[i].Value
	}
	return nil
}

func (in *inode) setXattr(name string, value []byte) {
	in.xattrs = mergeXattrs(in.xattrs, []layer.Xattr{{Name: name, Value: value}})
}

func (in *inode) removeXattr(name string) {
	if i, ok := in.findXattr(name); ok {
		in.xattrs = slices.Concat(in.xattrs[:i], in.xattrs[i+1:])
	}
}
