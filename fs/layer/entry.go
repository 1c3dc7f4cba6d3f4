package layer

import (
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
)

// Type is the kind of a TOC entry's inode.
type Type uint8

// The kinds of inodes a layer can hold.
const (
	Dir Type = iota + 1
	Reg
	Symlink
	Hardlink // another name of LinkName's inode, in the same layer
	Char
	Block
	Fifo
)

// Entry is one name of a layer, checked against the limits of docs/security:
// no "..", no NUL, no component over 255 bytes, no overlay xattrs.
type Entry struct {
	// Name is the path in the layer: clean, slash-separated, relative, in any
	// bytes but NUL; "" is the root directory. Whiteouts keep their ".wh."
	// names; it is for the merge (package tree) to apply them.
	Name     string
	LinkName string // symlink target as it is; hard link target in the form of Name
	Type     Type
	Mode     uint32 // permission, setuid, setgid and sticky bits: 07777
	UID, GID uint32
	ModTime  time.Time
	Size     int64 // bytes, of a Reg
	Major    uint32
	Minor    uint32
	Xattrs   []Xattr // sorted by Name
	// Key names the contents of a Reg with Size > 0 in the cache.
	Key Key
}

// Xattr is one extended attribute, its name with the namespace.
type Xattr struct {
	Name  string
	Value []byte
}

// Key names the contents of a regular file; the cache says how it is made.
type Key = cache.Key

// Object tells where in a layer's blob the contents of one file are.
type Object struct {
	Key    Key
	Size   int64 // bytes of the file
	Chunks []Chunk
}

// Chunk is one verified unit of an object.
type Chunk struct {
	Offset      int64    // in the file, bytes
	Size        int64    // uncompressed, bytes
	BlobOffset  int64    // where the compressed stream begins in the blob
	BlobSize    int64    // how far it can reach at most: to the next stream
	InnerOffset int64    // uncompressed bytes to skip from the stream's begin
	Digest      [32]byte // SHA-256 of the Size bytes
}
