package erofs

import (
	"encoding/binary"
	"strings"
)

// Names of attributes that an image has for the kernel.
const (
	XattrACL        = "system.posix_acl_access"
	XattrDefaultACL = "system.posix_acl_default"

	// overlayfs' own. XattrRedirect names a file's object: "/" and its key in
	// hexadecimal digits.
	XattrMetacopy = "trusted.overlay.metacopy"
	XattrRedirect = "trusted.overlay.redirect"
	XattrOpaque   = "trusted.overlay.opaque"
)

// xattrPrefixes are the beginnings of attribute names that are stored as a
// number. The ACLs' are whole names.
var xattrPrefixes = [...]struct {
	prefix string
	index  byte
}{
	{"user.", 1},
	{XattrACL, 2},
	{XattrDefaultACL, 3},
	{"trusted.", 4},
	{"security.", 6},
}

// xattrName splits an attribute's name into the number for its beginning and the
// rest. Only names that an inode can have are passed.
func xattrName(name string) (index byte, rest string) {
	for _, p := range xattrPrefixes {
		if rest, ok := strings.CutPrefix(name, p.prefix); ok {
			return p.index, rest
		}
	}
	return 0, name
}

func align4(n int) int { return (n + 3) &^ 3 }

// XattrLen returns the bytes that an attribute takes.
func XattrLen(name string, value []byte) uint32 {
	_, rest := xattrName(name)
	return uint32(align4(xattrEntry + len(rest) + len(value)))
}

// AppendXattrHeader appends what is before an inode's first attribute.
func AppendXattrHeader(b []byte) []byte { return append(b, zeros[:XattrHeader]...) }

// AppendXattr appends an attribute.
func AppendXattr(b []byte, name string, value []byte) []byte {
	index, rest := xattrName(name)
	b = append(b, byte(len(rest)), index)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	b = append(b, rest...)
	b = append(b, value...)
	n := xattrEntry + len(rest) + len(value)
	return append(b, zeros[:align4(n)-n]...)
}
