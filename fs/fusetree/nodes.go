package fusetree

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
)

// forever is for how long the kernel may believe what it is told.
const forever = 100 * 365 * 24 * time.Hour

// A node's number in FUSE is its nid, but for the root's: that is 1, which is
// nobody's nid, for the image's first block holds no inodes.

func (s *Server) nid(node uint64) uint64 {
	if node == fuse.FUSE_ROOT_ID {
		return s.root
	}
	return node
}

func (s *Server) node(nid uint64) uint64 {
	if nid == s.root {
		return fuse.FUSE_ROOT_ID
	}
	return nid
}

// inode reads the inode of a request.
func (s *Server) inode(h *fuse.InHeader, in *erofs.Inode) error {
	return s.image.Inode(s.nid(h.NodeId), in)
}

// Lookup finds a name, or tells for ever that there is none.
func (s *Server) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	start := time.Now()
	defer func() { s.stats.Lookups.Observe(time.Since(start)) }()
	var in erofs.Inode
	err := s.inode(h, &in)
	var nid uint64
	var ok bool
	if err == nil {
		nid, _, ok, err = s.image.Lookup(&in, name)
	}
	if err == nil && !ok {
		out.SetEntryTimeout(forever)
		return fuse.OK
	}
	if err == nil {
		err = s.image.Inode(nid, &in)
	}
	if err != nil {
		return s.failed("look-up", err)
	}
	s.entry(&in, out)
	return fuse.OK
}

// GetAttr tells a node's attributes.
func (s *Server) GetAttr(_ <-chan struct{}, h *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	var in erofs.Inode
	if err := s.inode(&h.InHeader, &in); err != nil {
		return s.failed("stat", err)
	}
	out.SetTimeout(forever)
	attr(&in, &out.Attr)
	return fuse.OK
}

// Readlink returns a symbolic link's target.
func (s *Server) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	var in erofs.Inode
	err := s.inode(h, &in)
	var target []byte
	if err == nil {
		target, err = s.image.Readlink(&in)
	}
	if err != nil {
		return nil, s.failed("readlink", err)
	}
	return target, fuse.OK
}

// entry fills the answer to a look-up.
func (s *Server) entry(in *erofs.Inode, out *fuse.EntryOut) {
	out.NodeId = s.node(in.Nid)
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	attr(in, &out.Attr)
}

// attr fills attributes as the kernel does for EROFS, which has one time of each
// inode.
func attr(in *erofs.Inode, a *fuse.Attr) {
	blocks := (in.Size + erofs.BlockSize - 1) / erofs.BlockSize * (erofs.BlockSize / 512)
	*a = fuse.Attr{
		Ino: in.Nid, Size: in.Size, Blocks: blocks, Blksize: erofs.BlockSize,
		Atime: in.Sec, Mtime: in.Sec, Ctime: in.Sec, Atimensec: in.Nsec, Mtimensec: in.Nsec, Ctimensec: in.Nsec,
		Mode: uint32(in.Mode), Nlink: in.Nlink, Owner: fuse.Owner{Uid: in.UID, Gid: in.GID},
	}
	if in.IsDevice() {
		a.Rdev = in.Data
	}
}
