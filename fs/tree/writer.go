package tree

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"io"

	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// writer writes an image from its second block on, front to back.
type writer struct {
	buf  *bufio.Writer
	hash hash.Hash
	off  int64 // next byte
	own  ownXattrs
	tmp  []byte // for an inode with what lies beside it
	dir  []byte // for a directory's data
}

func newWriter(w io.WriterAt) *writer {
	h := sha256.New()
	return &writer{
		buf:  bufio.NewWriterSize(io.MultiWriter(io.NewOffsetWriter(w, erofs.BlockSize), h), 1<<18),
		hash: h,
		off:  erofs.BlockSize,
	}
}

var zeros [erofs.BlockSize]byte

// seek writes zeros up to an offset that is ahead.
func (w *writer) seek(off int64) error {
	for w.off < off {
		if err := w.write(zeros[:min(erofs.BlockSize, off-w.off)]); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) write(b []byte) error {
	n, err := w.buf.Write(b)
	w.off += int64(n)
	return err
}

// inode writes an inode with what lies beside it.
func (w *writer) inode(in *inode, number, first uint32) error {
	if err := w.seek(in.place.offset); err != nil {
		return err
	}
	h := in.header(number, first)
	b := append(w.tmp[:0], zeros[:erofs.InodeSize]...)
	h.Encode(b)
	if in.place.xattrLen > 0 {
		b = erofs.AppendXattrHeader(b)
		b = appendXattrs(b, w.own.of(in))
		b = appendXattrs(b, in.xattrs)
	}
	switch in.place.layout {
	case erofs.ChunkBased:
		b = binary.LittleEndian.AppendUint32(b, erofs.ChunkHole)
	case erofs.FlatInline:
		w.dir = in.data(w.dir[:0])
		b = append(b, w.dir[len(w.dir)&^(erofs.BlockSize-1):]...)
	}
	w.tmp = b
	return w.write(b)
}

// blocks writes an inode's data blocks; data begins at block first.
func (w *writer) blocks(in *inode, first int64) error {
	n := in.place.data
	if in.place.layout == erofs.FlatInline {
		n &^= erofs.BlockSize - 1
	}
	if n == 0 {
		return nil
	}
	if err := w.seek((first + int64(in.place.block)) * erofs.BlockSize); err != nil {
		return err
	}
	w.dir = in.data(w.dir[:0])
	return w.write(w.dir[:n])
}

// data appends the data of a directory or symbolic link.
func (in *inode) data(b []byte) []byte {
	if in.kind == layer.Symlink {
		return append(b, in.ent.LinkName...)
	}
	return erofs.AppendDir(b, len(in.dir.entries), in.dir.entry)
}

// finish fills the image up to its size, and returns a UUID made of what was
// written.
func (w *writer) finish(size int64) (uuid [16]byte, err error) {
	if err := w.seek(size); err != nil {
		return uuid, err
	}
	if err := w.buf.Flush(); err != nil {
		return uuid, err
	}
	return erofs.UUID([32]byte(w.hash.Sum(nil))), nil
}
