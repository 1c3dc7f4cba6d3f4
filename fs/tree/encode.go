package tree

import (
	"encoding/binary"
	"encoding/hex"
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

// xattrsLen returns the bytes that attributes take, without the header.
func xattrsLen(xattrs []layer.Xattr) uint32 {
	n := 0
	for _, x := range xattrs {
		_, rest := xattrName(x.Name)
		n += align4(xattrEntry + len(rest) + len(x.Value))
	}
	return uint32(n)
}

// appendXattrs appends attributes, without the header.
func appendXattrs(b []byte, xattrs []layer.Xattr) []byte {
	for _, x := range xattrs {
		index, rest := xattrName(x.Name)
		b = append(b, byte(len(rest)), index)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(x.Value)))
		b = append(b, rest...)
		b = append(b, x.Value...)
		n := xattrEntry + len(rest) + len(x.Value)
		b = append(b, zeros[:align4(n)-n]...)
	}
	return b
}

// overlayfs' attributes of the files and directories of an image.
const (
	xattrMetacopy = "trusted.overlay.metacopy"
	xattrRedirect = "trusted.overlay.redirect"
	xattrOpaque   = "trusted.overlay.opaque"
)

// ownXattrs makes the attributes that overlayfs has to find on an inode. They are
// there for the next call only: there are too many to keep.
type ownXattrs struct {
	list     []layer.Xattr
	redirect []byte
}

func (o *ownXattrs) of(in *inode) []layer.Xattr {
	o.list = o.list[:0]
	switch {
	case in.kind == layer.Reg && in.ent.Size > 0:
		key := &in.ent.Key
		o.redirect = append(o.redirect[:0], '/') // and then key.String()
		o.redirect = hex.AppendEncode(o.redirect, key[:])
		o.list = append(o.list, layer.Xattr{Name: xattrMetacopy}, layer.Xattr{Name: xattrRedirect, Value: o.redirect})
	case in.kind == layer.Dir && in.dir.opaque:
		o.list = append(o.list, layer.Xattr{Name: xattrOpaque, Value: []byte("y")})
	}
	return o.list
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
			b = append(b, zeros[:blockSize-size]...)
		}
	}
	return b
}
