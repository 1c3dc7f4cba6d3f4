package erofs

import (
	"encoding/binary"
	"hash/crc32"
)

const (
	superMagic = 0xe0f5e1e2

	compatChecksum    = 0x1 // the superblock's block has a checksum
	compatMtime       = 0x2 // inodes' times are modification times
	incompatChunkFile = 0x4 // chunk-based files
)

// Super is the superblock.
type Super struct {
	Root   uint16   // the root's nid
	Inodes uint64   // distinct inodes
	Blocks uint32   // of the whole image
	UUID   [16]byte // [UUID] of what follows the first block
}

// UUID makes an image's UUID of the SHA-256 of all that follows its first block.
func UUID(sum [32]byte) (uuid [16]byte) {
	copy(uuid[:], sum[:])
	uuid[6] = uuid[6]&0x0f | 0x80 // version 8: vendor-specific (RFC 9562)
	uuid[8] = uuid[8]&0x3f | 0x80
	return uuid
}

// Encode returns the image's first block. The time of building, offset 24, is 0.
func (s *Super) Encode() []byte {
	block := make([]byte, BlockSize)
	b := block[SuperOffset:]
	le := binary.LittleEndian
	le.PutUint32(b[0:], superMagic)
	le.PutUint32(b[8:], compatChecksum|compatMtime)
	b[12] = blockBits
	le.PutUint16(b[14:], s.Root)
	le.PutUint64(b[16:], s.Inodes)
	le.PutUint32(b[36:], s.Blocks)
	copy(b[48:], s.UUID[:])
	le.PutUint32(b[80:], incompatChunkFile)
	le.PutUint32(b[4:], superChecksum(block))
	return block
}

// superChecksum is CRC-32C from the superblock to the end of its block, the field
// itself being zero, and without the final inversion.
func superChecksum(block []byte) uint32 {
	b := block[SuperOffset:BlockSize]
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(0, table, b[:4])
	sum = crc32.Update(sum, table, zeros[:4])
	return ^crc32.Update(sum, table, b[8:])
}

// decode reads an image's first block. It reports false for what [Super.Encode]
// would not have written.
func (s *Super) decode(block []byte) bool {
	b := block[SuperOffset:BlockSize]
	le := binary.LittleEndian
	copy(s.UUID[:], b[48:])
	s.Root, s.Inodes, s.Blocks = le.Uint16(b[14:]), le.Uint64(b[16:]), le.Uint32(b[36:])
	return le.Uint32(b[0:]) == superMagic && b[12] == blockBits &&
		le.Uint32(b[8:]) == compatChecksum|compatMtime && le.Uint32(b[80:]) == incompatChunkFile
}
