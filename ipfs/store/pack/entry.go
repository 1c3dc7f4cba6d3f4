package pack

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"time"

	"github.com/multiformats/go-multihash"
)

// Key is what tells values apart in memory: the end of the hash. Of two values
// with the same eight bytes (2^-64 for each pair) the later one replaces the
// other.
func Key(h multihash.Multihash) uint64 {
	var b [8]byte
	copy(b[:], h[max(0, len(h)-8):])
	return binary.LittleEndian.Uint64(b[:])
}

// The index file: times, then entries. An entry, little-endian:
//
//	 0  CRC-32C of the rest
//	 4  first page
//	 8  length in bytes
//	12  time of last use when it was added, in seconds since 1970
//	16  length of the hash, one byte
//	17  hash, then zeros
const (
	timesSize = 4 * fullSlots
	entrySize = 96
	maxHash   = entrySize - 17
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode writes an entry into b, which is entrySize bytes of zeros.
func encode(b []byte, s slot, h multihash.Multihash) {
	binary.LittleEndian.PutUint32(b[4:], s.first)
	binary.LittleEndian.PutUint32(b[8:], s.size)
	binary.LittleEndian.PutUint32(b[12:], s.used)
	b[16] = byte(len(h))
	copy(b[17:], h)
	binary.LittleEndian.PutUint32(b, crc32.Checksum(b[4:entrySize], castagnoli))
}

// decode reads an entry of entrySize bytes. What was never written, or was
// removed, or is damaged, is none.
func decode(b []byte) (s slot, h multihash.Multihash, ok bool) {
	n := int(b[16])
	if binary.LittleEndian.Uint32(b) != crc32.Checksum(b[4:entrySize], castagnoli) || n == 0 || n > maxHash {
		return s, nil, false
	}
	h = multihash.Multihash(b[17 : 17+n])
	s = slot{
		key: Key(h), first: binary.LittleEndian.Uint32(b[4:]),
		size: binary.LittleEndian.Uint32(b[8:]), used: binary.LittleEndian.Uint32(b[12:]),
	}
	return s, h, s.size > 0 && s.size <= MaxValue
}

func second(t time.Time) uint32 {
	return uint32(min(max(t.Unix(), 0), math.MaxUint32))
}

func unixTime(second uint32) time.Time { return time.Unix(int64(second), 0) }
