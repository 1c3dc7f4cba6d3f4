package tree

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// What an image looks like, for the writer here and for whoever reads one: the
// kernel, or a FUSE server with the file in memory. The format is EROFS
// (https://docs.kernel.org/filesystems/erofs.html, fs/erofs/erofs_fs.h), of
// which only this much is used. All numbers are little-endian.
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
//   - of a directory or symbolic link in layout flatInline, what remains of its
//     data after the full blocks.
//
// All of it lies within one block, if it fits in one; else it begins a block.
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
const (
	blockBits = 12
	blockSize = 1 << blockBits

	superOffset = 1024
	superSize   = 128
	superMagic  = 0xe0f5e1e2

	compatChecksum    = 0x1 // the superblock's block has a checksum
	compatMtime       = 0x2 // inodes' times are modification times
	incompatChunkFile = 0x4 // chunk-based files

	nidSize       = 32 // bytes a node number counts
	inodeSize     = 64
	direntSize    = 12
	xattrHeader   = 12
	xattrEntry    = 4 // name length, name index and value size; name and value follow
	chunkAddrSize = 4
	chunkHole     = 1<<32 - 1

	maxXattrValue = 1<<16 - 1 // bytes, by the width of the field
	maxChunkBits  = blockBits + 31
)

// Data layouts of inodes.
const (
	flatPlain  = 0 // all data in blocks
	flatInline = 2 // the last, partial block's data beside the inode
	chunkBased = 4
)

// File types: in the mode of inodes (S_IFMT), and in directory entries.
const (
	modeFifo    = 0o010000
	modeChar    = 0o020000
	modeDir     = 0o040000
	modeBlock   = 0o060000
	modeReg     = 0o100000
	modeSymlink = 0o120000
)

// fileType returns the type of a kind as in the mode and in directory entries.
func fileType(k layer.Type) (mode uint16, dirent byte) {
	switch k {
	case layer.Dir:
		return modeDir, 2
	case layer.Char:
		return modeChar, 3
	case layer.Block:
		return modeBlock, 4
	case layer.Fifo:
		return modeFifo, 5
	case layer.Symlink:
		return modeSymlink, 7
	}
	return modeReg, 1
}

// xattrPrefixes are the beginnings of attribute names that are stored as a
// number. The ACLs' are whole names.
var xattrPrefixes = [...]struct {
	prefix string
	index  byte
}{
	{"user.", 1},
	{xattrACL, 2},
	{xattrDefaultACL, 3},
	{"trusted.", 4},
	{"security.", 6},
}

// super is the superblock.
type super struct {
	rootNid uint16
	inodes  uint64
	blocks  uint32
	uuid    [16]byte
}

// encode returns the image's first block. The time of building, offset 24, is 0.
func (s *super) encode() []byte {
	block := make([]byte, blockSize)
	b := block[superOffset:]
	le := binary.LittleEndian
	le.PutUint32(b[0:], superMagic)
	le.PutUint32(b[8:], compatChecksum|compatMtime)
	b[12] = blockBits
	le.PutUint16(b[14:], s.rootNid)
	le.PutUint64(b[16:], s.inodes)
	le.PutUint32(b[36:], s.blocks)
	copy(b[48:], s.uuid[:])
	le.PutUint32(b[80:], incompatChunkFile)
	// CRC-32C from the superblock to the end of its block, the field being
	// zero, and without the final inversion.
	le.PutUint32(b[4:], ^crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return block
}

// inodeHeader is the fixed part of an inode.
type inodeHeader struct {
	layout     uint16
	xattrCount uint16 // 0, or 1 + bytes after the xattr header / 4
	mode       uint16
	size       uint64
	data       uint32 // first block, device number, or chunk format
	number     uint32 // for stat(2) with 32-bit inode numbers
	uid, gid   uint32
	sec        uint64
	nsec       uint32
	nlink      uint32
}

func (h *inodeHeader) encode(b []byte) {
	le := binary.LittleEndian
	clear(b[:inodeSize])
	le.PutUint16(b[0:], 1|h.layout<<1) // 1: the inode of 64 bytes
	le.PutUint16(b[2:], h.xattrCount)
	le.PutUint16(b[4:], h.mode)
	le.PutUint64(b[8:], h.size)
	le.PutUint32(b[16:], h.data)
	le.PutUint32(b[20:], h.number)
	le.PutUint32(b[24:], h.uid)
	le.PutUint32(b[28:], h.gid)
	le.PutUint64(b[32:], h.sec)
	le.PutUint32(b[40:], h.nsec)
	le.PutUint32(b[44:], h.nlink)
}
