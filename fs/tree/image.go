package tree

import (
	"context"
	"errors"
	"io"
	"math"
	"math/bits"

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
	first := (l.end + xattrHeader + blockSize - 1) / blockSize
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
	size := (first + l.blocks) * blockSize
	uuid, err := out.finish(size)
	if err != nil {
		return Stats{}, err
	}
	s := super{rootNid: uint16(root.place.offset / nidSize), inodes: uint64(len(l.inodes)), blocks: uint32(first + l.blocks), uuid: uuid}
	if _, err := w.WriteAt(s.encode(), 0); err != nil {
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
	l := &layouter{end: blockSize}
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
		p.xattrLen += xattrHeader
	}
	size := int64(inodeSize) + int64(p.xattrLen)
	switch in.kind {
	case layer.Reg:
		l.stats.Content += in.ent.Size
		if in.ent.Size > 0 {
			p.layout = chunkBased
			size += chunkAddrSize
		}
	case layer.Symlink:
		p.data = int64(len(in.ent.LinkName))
	case layer.Dir:
		p.data = dirSize(in.dir.entries)
	}
	if p.data > 0 {
		tail := p.data % blockSize
		blocks := p.data / blockSize
		switch {
		case tail == 0:
		case size+tail <= blockSize:
			p.layout = flatInline
			size += tail
		default:
			blocks++
		}
		p.block = uint32(l.blocks)
		l.blocks += blocks
	}
	off := (l.end + nidSize - 1) &^ (nidSize - 1)
	if off%blockSize+size > blockSize {
		off = (off + blockSize - 1) &^ (blockSize - 1)
	}
	p.offset = off
	l.end = off + size
	l.inodes = append(l.inodes, in)
}

// chunkFormat returns the format of a file that is one chunk: how many times its
// chunk's size is a block's, as a power of two.
func chunkFormat(size int64) uint32 {
	return uint32(max(bits.Len64(uint64(size-1)), blockBits) - blockBits)
}

// header returns the fixed part of an inode; data blocks begin at block first.
func (in *inode) header(number, first uint32) inodeHeader {
	mode, _ := fileType(in.kind)
	h := inodeHeader{
		layout: in.place.layout, mode: mode | uint16(in.mode),
		size: uint64(in.place.data), data: first + in.place.block, number: number,
		uid: in.uid, gid: in.gid, sec: uint64(in.sec), nsec: in.nsec, nlink: in.nlink,
	}
	if n := in.place.xattrLen; n > 0 {
		h.xattrCount = uint16(1 + (n-xattrHeader)/4)
	}
	switch in.kind {
	case layer.Reg:
		h.size, h.data = uint64(in.ent.Size), 0
		if in.ent.Size > 0 {
			h.data = chunkFormat(in.ent.Size)
		}
	case layer.Char, layer.Block:
		h.data = in.rdev
	case layer.Fifo:
		h.data = 0
	}
	return h
}
