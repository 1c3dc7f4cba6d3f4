package tree

import (
	"encoding/binary"

	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// POSIX ACLs as they are in extended attributes (Linux
// include/uapi/linux/posix_acl_xattr.h): a 32-bit version, then for each entry
// 16 bits of tag, 16 bits of permissions and 32 bits of user or group number,
// all little-endian.
const (
	aclVersion = 2
	aclHeader  = 4
	aclEntry   = 8

	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// applyACL sets an ACL as setxattr(2) does: it must be valid, and one that says
// no more than the mode is not kept. Symbolic links have none: that is found out
// when the ACL has been parsed but not checked.
func (in *inode) applyACL(x layer.Xattr) error {
	empty := len(x.Value) == 0 || len(x.Value) == aclHeader
	switch {
	case len(x.Value) >= aclHeader && binary.LittleEndian.Uint32(x.Value) != aclVersion:
		return nil // not supported: ignored
	case !empty && !aclFormed(x.Value):
		return badXattr(x, "not a POSIX ACL")
	case in.kind == layer.Symlink:
		return nil
	case !empty && !aclValid(x.Value):
		return badXattr(x, "not a valid POSIX ACL")
	case x.Name == xattrDefaultACL && in.kind != layer.Dir && !empty:
		return badXattr(x, "default ACL on what is no directory")
	case len(x.Value) > erofs.MaxXattrValue:
		return badXattr(x, "too large")
	case empty || x.Name == xattrACL && aclMinimal(x.Value):
		in.removeXattr(x.Name)
	default:
		in.setXattr(x.Name, x.Value)
	}
	return nil
}

// aclEntries calls fn with the tag, permissions and number of each entry.
func aclEntries(acl []byte, fn func(tag, perm uint16, id uint32)) {
	for b := acl[aclHeader:]; len(b) >= aclEntry; b = b[aclEntry:] {
		fn(binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint32(b[4:]))
	}
}

// aclFormed reports whether bytes are a list of ACL entries of known kinds.
func aclFormed(acl []byte) bool {
	if len(acl) < aclHeader || (len(acl)-aclHeader)%aclEntry != 0 {
		return false
	}
	ok := true
	aclEntries(acl, func(tag, _ uint16, _ uint32) {
		switch tag {
		case aclUserObj, aclUser, aclGroupObj, aclGroup, aclMask, aclOther:
		default:
			ok = false
		}
	})
	return ok
}

// aclValid checks a list of entries as the kernel does: they are in the order of
// their tags, one each for owner, group and others, and a mask if anyone is named.
func aclValid(acl []byte) bool {
	ok, last := true, uint16(0)
	var count [aclOther + 1]int
	aclEntries(acl, func(tag, perm uint16, id uint32) {
		named := tag == aclUser || tag == aclGroup
		ok = ok && perm <= 7 && (tag > last || named && tag == last) && (!named || id != noID)
		count[tag]++
		last = tag
	})
	named := count[aclUser] + count[aclGroup]
	return ok && count[aclUserObj] == 1 && count[aclGroupObj] == 1 && count[aclOther] == 1 &&
		(named == 0 || count[aclMask] == 1)
}

// aclMinimal reports whether a valid ACL says no more than a mode can.
func aclMinimal(acl []byte) bool { return len(acl) <= aclHeader+3*aclEntry }

// aclChmod returns a valid ACL with the permissions that a chmod gives it: those
// of the group go to the mask if there is one.
func aclChmod(acl []byte, mode uint32) []byte {
	out := append([]byte(nil), acl...)
	group := uint16(aclGroupObj)
	aclEntries(acl, func(tag, _ uint16, _ uint32) {
		if tag == aclMask {
			group = aclMask
		}
	})
	i := aclHeader
	aclEntries(acl, func(tag, perm uint16, _ uint32) {
		switch tag {
		case aclUserObj:
			perm = uint16(mode >> 6 & 7)
		case group:
			perm = uint16(mode >> 3 & 7)
		case aclOther:
			perm = uint16(mode & 7)
		}
		binary.LittleEndian.PutUint16(out[i+2:], perm)
		i += aclEntry
	})
	return out
}
