package tree

import (
	"context"
	"errors"
	"io"
	"math"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// place is where an inode and its data go in the image.
type place struct {
	offset   int64  // of the inode, bytes; 0 before it has one
	data     int64  // size of a directory's data, bytes
	block    uint32 // first block of the data, counted from the first data block
	xattrLen uint32 // bytes of the extended attributes with their header
	layout   uint16
}

var errTooLarge = errors.New("image would have more than 2^32 blocks")

// writeImage lays out and writes a merged tree.
func writeImage(ctx context.Context, w io.WriterAt, root *inode) (Stats, error) {
	l := layOut(root)
	// Block where data begins. An inode is never the image's very last bytes:
	// fsck.erofs 1.5 reads an attribute header behind every one.
	first := (l.end + erofs.XattrHeader + erofs.BlockSize - 1) / erofs.BlockSize
	if first+l.blocks > math.MaxUint32 {
		return Stats{}, errTooLarge
	}
	out := newWriter(w)
	for i, in := range l.inodes {
		if i%4096 == 0 && ctx.Err() != nil {
			return Stats{}, ctx.Err()
		}
		if err := out.inode(in, uint32(i+1), uint32(first)); err != nil {
			return Stats{}, err
		}
	}
	for i, in := range l.inodes {
		if i%4096 == 0 && ctx.Err() != nil {
			return Stats{}, ctx.Err()
		}
		if err := out.blocks(in, first); err != nil {
			return Stats{}, err
		}
	}
	size := (first + l.blocks) * erofs.BlockSize
	uuid, err := out.finish(size)
	if err != nil {
		return Stats{}, err
	}
	s := erofs.Super{Root: uint16(root.place.offset / erofs.NidSize), Inodes: uint64(len(l.inodes)), Blocks: uint32(first + l.blocks), UUID: uuid}
	if _, err := w.WriteAt(s.Encode(), 0); err != nil {
		return Stats{}, err
	}
	l.stats.Inodes, l.stats.Bytes, l.stats.UUID = int64(len(l.inodes)), size, uuid
	return l.stats, nil
}

// layouter gives every inode its place.
type layouter struct {
	inodes []*inode // in the order of their places
	end    int64    // of the inodes, bytes
	blocks int64    // data blocks
	stats  Stats
	own    ownXattrs
}

// layOut places the inodes of a tree breadth first: a directory's files lie side
// by side, in the order in which a listing asks for them.
func layOut(root *inode) *layouter {
	l := &layouter{end: erofs.BlockSize}
	l.add(root)
	l.stats.Names = 1
	for i := 0; i < len(l.inodes); i++ {
		if d := l.inodes[i].dir; d != nil {
			for _, e := range d.entries {
				if e.ino.place.offset == 0 {
					l.add(e.ino)
				}
			}
			l.stats.Names += int64(len(d.entries)) - 2
		}
	}
	return l
}

// add places one inode.
func (l *layouter) add(in *inode) {
	p := &in.place
	p.xattrLen = xattrsLen(l.own.of(in)) + xattrsLen(in.xattrs)
	if p.xattrLen > 0 {
		p.xattrLen += erofs.XattrHeader
	}
	size := int64(erofs.InodeSize) + int64(p.xattrLen)
	switch in.kind {
	case layer.Reg:
		l.stats.Content += in.ent.Size
		if in.ent.Size > 0 {
			p.layout = erofs.ChunkBased
			size += erofs.ChunkAddrSize
		}
	case layer.Symlink:
		p.data = int64(len(in.ent.LinkName))
	case layer.Dir:
		p.data = in.dir.size()
	}
	if p.data > 0 {
		tail := p.data % erofs.BlockSize
		blocks := p.data / erofs.BlockSize
		switch {
		case tail == 0:
		case size+tail <= erofs.BlockSize:
			p.layout = erofs.FlatInline
			size += tail
		default:
			blocks++
		}
		p.block = uint32(l.blocks)
		l.blocks += blocks
	}
	off := (l.end + erofs.NidSize - 1) &^ (erofs.NidSize - 1)
	if off%erofs.BlockSize+size > erofs.BlockSize {
		off = (off + erofs.BlockSize - 1) &^ (erofs.BlockSize - 1)
	}
	p.offset = off
	l.end = off + size
	l.inodes = append(l.inodes, in)
}

// header returns the fixed part of an inode; data blocks begin at block first.
func (in *inode) header(number, first uint32) erofs.Header {
	h := erofs.Header{
		Layout: in.place.layout, XattrCount: erofs.XattrCount(in.place.xattrLen),
		Mode: fileType(in.kind) | uint16(in.mode),
		Size: uint64(in.place.data), Data: first + in.place.block, Number: number,
		UID: in.uid, GID: in.gid, Sec: uint64(in.sec), Nsec: in.nsec, Nlink: in.nlink,
	}
	switch in.kind {
	case layer.Reg:
		h.Size, h.Data = uint64(in.ent.Size), 0
		if in.ent.Size > 0 {
			h.Data = erofs.ChunkFormat(in.ent.Size)
		}
	case layer.Char, layer.Block:
		h.Data = in.rdev
	case layer.Fifo:
		h.Data = 0
	}
	return h
}

// fileType returns the type of a kind as in the mode.
func fileType(k layer.Type) uint16 {
	switch k {
	case layer.Dir:
		return unix.S_IFDIR
	case layer.Char:
		return unix.S_IFCHR
	case layer.Block:
		return unix.S_IFBLK
	case layer.Fifo:
		return unix.S_IFIFO
	case layer.Symlink:
		return unix.S_IFLNK
	}
	return unix.S_IFREG
}
