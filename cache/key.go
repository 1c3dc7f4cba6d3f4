package cache

import (
	"encoding/binary"
	"encoding/hex"
)

// Key names an object: the contents of one regular file. It cannot be forged:
// for a file of one chunk it is the SHA-256 of the contents, for more chunks
// the SHA-512/256 of the list of their sizes and digests (another function, so
// that no file's contents can be made to have the key of another file's list).
type Key [32]byte

// String returns the key in 64 lower-case hexadecimal digits: the name of the
// object's file in a directory of objects. Trees point at objects by it.
func (k Key) String() string { return hex.EncodeToString(k[:]) }

// ID is the first 64 bits of the key, big endian: the object's name where there
// is room for no more, as in an inode number. A tree in which two objects would
// share one is refused when it is built.
func (k Key) ID() uint64 { return binary.BigEndian.Uint64(k[:8]) }

// ParseKey is the inverse of [Key.String]; ok is false for anything else,
// upper-case digits included.
func ParseKey(s string) (k Key, ok bool) {
	if len(s) != 2*len(k) {
		return k, false
	}
	if _, err := hex.Decode(k[:], []byte(s)); err != nil {
		return k, false
	}
	return k, k.String() == s
}
