package tree

import (
	"encoding/binary"
	"strings"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

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

// xattrsLen returns the bytes that attributes take beside their inode.
func xattrsLen(xattrs []layer.Xattr) uint32 {
	if len(xattrs) == 0 {
		return 0
	}
	n := xattrHeader
	for _, x := range xattrs {
		_, rest := xattrName(x.Name)
		n += align4(xattrEntry + len(rest) + len(x.Value))
	}
	return uint32(n)
}

// appendXattrs appends attributes with their header.
func appendXattrs(b []byte, xattrs []layer.Xattr) []byte {
	if len(xattrs) == 0 {
		return b
	}
	b = append(b, make([]byte, xattrHeader)...)
	for _, x := range xattrs {
		index, rest := xattrName(x.Name)
		b = append(b, byte(len(rest)), index)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(x.Value)))
		b = append(b, rest...)
		b = append(b, x.Value...)
		for n := xattrEntry + len(rest) + len(x.Value); n < align4(n); n++ {
			b = append(b, 0)
		}
	}
	return b
}

// dirBlock returns how many of the entries fit in one block, and the bytes they
// take there.
func dirBlock(entries []dirent) (n, size int) {
	for _, e := range entries {
		add := direntSize + len(e.name)
		if size+add > blockSize {
			break
		}
		n, size = n+1, size+add
	}
	return n, size
}

// dirSize returns the bytes of a directory's data: full blocks, and a last one of
// what it needs.
func dirSize(entries []dirent) int64 {
	var total int64
	for {
		n, size := dirBlock(entries)
		if entries = entries[n:]; len(entries) == 0 {
			return total + int64(size)
		}
		total += blockSize
	}
}

// appendDir appends a directory's data.
func appendDir(b []byte, entries []dirent) []byte {
	for len(entries) > 0 {
		n, size := dirBlock(entries)
		nameOff := n * direntSize
		for _, e := range entries[:n] {
			_, typ := fileType(e.ino.kind)
			b = binary.LittleEndian.AppendUint64(b, uint64(e.ino.place.offset/nidSize))
			b = binary.LittleEndian.AppendUint16(b, uint16(nameOff))
			b = append(b, typ, 0)
			nameOff += len(e.name)
		}
		for _, e := range entries[:n] {
			b = append(b, e.name...)
		}
		if entries = entries[n:]; len(entries) > 0 {
			b = append(b, make([]byte, blockSize-size)...)
		}
	}
	return b
}
