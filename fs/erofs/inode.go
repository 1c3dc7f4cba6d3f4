package erofs

import (
	"encoding/binary"
	"math/bits"
)

// Header is the fixed part of an inode.
type Header struct {
	Layout     uint16
	XattrCount uint16 // see [XattrCount]
	Mode       uint16 // with the type
	Size       uint64 // bytes
	Data       uint32 // first block, device number (as mknod(2) has it), or chunk format
	Number     uint32 // for stat(2) with 32-bit inode numbers
	UID, GID   uint32
	Sec        uint64 // modification time, seconds since 1970
	Nsec       uint32
	Nlink      uint32
}

// XattrCount is what a header says of attributes that take n bytes with their
// own header, a multiple of 4; 0 if there are none.
func XattrCount(n uint32) uint16 {
	if n == 0 {
		return 0
	}
	return uint16(1 + (n-XattrHeader)/4)
}

// xattrLen is the inverse of [XattrCount].
func (h *Header) xattrLen() uint64 {
	if h.XattrCount == 0 {
		return 0
	}
	return XattrHeader + 4*uint64(h.XattrCount-1)
}

// ChunkFormat returns the format of a file that is one chunk: how many times its
// chunk's size is a block's, as a power of two.
func ChunkFormat(size int64) uint32 {
	return uint32(max(bits.Len64(uint64(size-1)), blockBits) - blockBits)
}

// Encode writes the header to b, of [InodeSize] bytes.
func (h *Header) Encode(b []byte) {
	le := binary.LittleEndian
	clear(b[:InodeSize])
	le.PutUint16(b[0:], 1|h.Layout<<1) // 1: the inode of 64 bytes
	le.PutUint16(b[2:], h.XattrCount)
	le.PutUint16(b[4:], h.Mode)
	le.PutUint64(b[8:], h.Size)
	le.PutUint32(b[16:], h.Data)
	le.PutUint32(b[20:], h.Number)
	le.PutUint32(b[24:], h.UID)
	le.PutUint32(b[28:], h.GID)
	le.PutUint64(b[32:], h.Sec)
	le.PutUint32(b[40:], h.Nsec)
	le.PutUint32(b[44:], h.Nlink)
}

// decode reads what Encode wrote. It reports false for another kind of inode.
func (h *Header) decode(b []byte) bool {
	le := binary.LittleEndian
	format := le.Uint16(b[0:])
	*h = Header{
		Layout:     format >> 1,
		XattrCount: le.Uint16(b[2:]),
		Mode:       le.Uint16(b[4:]),
		Size:       le.Uint64(b[8:]),
		Data:       le.Uint32(b[16:]),
		Number:     le.Uint32(b[20:]),
		UID:        le.Uint32(b[24:]),
		GID:        le.Uint32(b[28:]),
		Sec:        le.Uint64(b[32:]),
		Nsec:       le.Uint32(b[40:]),
		Nlink:      le.Uint32(b[44:]),
	}
	return format&1 == 1 && (h.Layout == FlatPlain || h.Layout == FlatInline || h.Layout == ChunkBased)
}
