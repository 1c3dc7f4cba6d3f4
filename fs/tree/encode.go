package tree

import (
	"encoding/hex"

	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// xattrsLen returns the bytes that attributes take, without the header.
func xattrsLen(xattrs []layer.Xattr) (n uint32) {
	for _, x := range xattrs {
		n += erofs.XattrLen(x.Name, x.Value)
	}
	return n
}

// appendXattrs appends attributes, without the header.
func appendXattrs(b []byte, xattrs []layer.Xattr) []byte {
	for _, x := range xattrs {
		b = erofs.AppendXattr(b, x.Name, x.Value)
	}
	return b
}

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
		o.list = append(o.list, layer.Xattr{Name: erofs.XattrMetacopy}, layer.Xattr{Name: erofs.XattrRedirect, Value: o.redirect})
	case in.kind == layer.Dir && in.dir.opaque:
		o.list = append(o.list, layer.Xattr{Name: erofs.XattrOpaque, Value: []byte("y")})
	}
	return o.list
}

// entry returns an entry of a merged directory as an image has it, once all inodes
// have their places.
func (d *directory) entry(i int) erofs.Dirent {
	e := &d.entries[i]
	return erofs.Dirent{Name: e.name, Nid: uint64(e.ino.place.offset / erofs.NidSize), Type: erofs.TypeOf(uint32(fileType(e.ino.kind)))}
}

// size returns the bytes of a merged directory's data.
func (d *directory) size() int64 { return erofs.DirSize(len(d.entries), d.entry) }
