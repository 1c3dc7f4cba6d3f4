// Package erofs is what is known here of the EROFS format: how the images that
// hold a tree's names are written, and how one is read from memory. The kernel
// mounts the same images.
//
// The format is EROFS (https://docs.kernel.org/filesystems/erofs.html,
// fs/erofs/erofs_fs.h), of which only this much is used. All numbers are
// little-endian.
//
//	offset 0      1 KiB of zeros, the superblock, zeros up to 4 KiB
//	offset 4096   inodes, each at a multiple of 32 bytes; the root's is the first
//	then          blocks of directories, and of symbolic links that do not fit
//	              beside their inode
//
// A node number (nid) is the offset of an inode in the image divided by 32. An
// inode is 64 bytes, then its extended attributes, then, all without a gap but for
// alignment to 4 bytes:
//
//   - of a regular file with contents, a 32-bit chunk address that says "hole":
//     reading the image's file itself gives zeros;
//   - of a directory or symbolic link in layout [FlatInline], what remains of its
//     data after the full blocks.
//
// All of it lies within one block, if it fits in one; else it begins a block. What
// is between inodes is zero.
//
// A directory is a sequence of 4 KiB blocks. Each begins with its entries, 12
// bytes each (nid 64 bits, offset of the name in the block 16 bits, type 8 bits, 8
// bits zero), then the names; the first entry's name offset divided by 12 is the
// count of entries. A name ends where the next one begins, the last one at the
// first NUL or the block's (or directory's) end. Names are in byte order throughout
// the directory, "." and ".." among them.
//
// There is only one size of inode although EROFS has one of 32 bytes: that has no
// time of its own, and a reader is simpler with one. Attributes are not shared
// between inodes (EROFS can): with sizes rounded up to 32 bytes it saves nothing
// for the two that every file here has.
package erofs

// Sizes of the format, in bytes where nothing else is said.
const (
	blockBits = 12
	BlockSize = 1 << blockBits

	SuperOffset = 1024 // of the superblock
	SuperSize   = 128

	NidSize       = 32 // bytes a node number counts
	InodeSize     = 64
	XattrHeader   = 12 // before the first of an inode's attributes
	ChunkAddrSize = 4
	MaxXattrValue = 1<<16 - 1
	MaxFileBits   = blockBits + 31 // a file has at most 1<<MaxFileBits bytes

	direntSize = 12
	xattrEntry = 4 // name length, name index and value size; name and value follow
	maxName    = 255
	maxLink    = 4096 // of a symbolic link's target
)

// Data layouts of inodes.
const (
	FlatPlain  = 0 // all data in blocks
	FlatInline = 2 // the last, partial block's data beside the inode
	ChunkBased = 4
)

// ChunkHole is the address of a chunk that is nowhere.
const ChunkHole = 1<<32 - 1

var zeros [BlockSize]byte

// TypeOf returns the type that a directory entry states for a mode.
func TypeOf(mode uint32) uint8 {
	for typ, m := range modeTypes {
		if m == mode&modeType && m != 0 {
			return uint8(typ)
		}
	}
	return 0
}

// ModeOf is the inverse of [TypeOf]: the type as it is in modes. It is 0 for a
// number that is no type.
func ModeOf(typ uint8) uint32 {
	if int(typ) < len(modeTypes) {
		return modeTypes[typ]
	}
	return 0
}

const modeType = 0o170000

// Types as in the mode, each at its number in directory entries.
var modeTypes = [...]uint32{
	1: 0o100000, // regular file
	2: 0o040000, // directory
	3: 0o020000, // character device
	4: 0o060000, // block device
	5: 0o010000, // FIFO
	6: 0o140000, // socket
	7: 0o120000, // symbolic link
}
