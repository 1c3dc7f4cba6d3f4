package layer

import (
	"crypto/sha512"
	"encoding/binary"
)

// keyDomain begins what is hashed to the key of an object of several chunks.
// Change it whenever the rest of the encoding changes.
const keyDomain = "ipfs-stargz object 1\n"

// keyOf computes the key of the contents that chunks make up: one chunk's
// SHA-256 itself; of more, SHA-512/256 over keyDomain, their number, and each
// one's size and SHA-256, numbers in 64 bits big endian.
func keyOf(chunks []Chunk) Key {
	if len(chunks) == 1 {
		return Key(chunks[0].Digest)
	}
	h := sha512.New512_256()
	var record [8 + 32]byte
	h.Write([]byte(keyDomain))
	h.Write(binary.BigEndian.AppendUint64(record[:0], uint64(len(chunks))))
	for i := range chunks {
		binary.BigEndian.PutUint64(record[:8], uint64(chunks[i].Size))
		copy(record[8:], chunks[i].Digest[:])
		h.Write(record[:])
	}
	var k Key
	h.Sum(k[:0])
	return k
}
