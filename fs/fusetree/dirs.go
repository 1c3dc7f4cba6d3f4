package fusetree

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
)

// OpenDir is answered once for all. The kernel then keeps what it has listed, as
// if each answer had said so.
func (s *Server) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

// ReadDir lists a directory.
func (s *Server) ReadDir(_ <-chan struct{}, h *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.list(h, func(e fuse.DirEntry) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus lists a directory with the attributes of what is in it, which saves
// the kernel a look-up of each name.
func (s *Server) ReadDirPlus(_ <-chan struct{}, h *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	var in erofs.Inode
	return s.list(h, func(e fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		// Without a node the kernel looks the name up when it needs it: what is
		// wrong with an inode is its own look-up's error. "." and ".." must not
		// have one.
		if e.Name != "." && e.Name != ".." && s.image.Inode(e.Ino, &in) == nil {
			s.entry(&in, entry)
		}
		return true
	})
}

// list calls add with the entries that a request asks for, until add reports that
// its answer is full.
func (s *Server) list(h *fuse.ReadIn, add func(fuse.DirEntry) bool) fuse.Status {
	start := time.Now()
	defer func() { s.stats.ReadDirs.Observe(time.Since(start)) }()
	var dir erofs.Inode
	err := s.inode(&h.InHeader, &dir)
	if err == nil {
		err = s.image.Dirents(&dir, int64(h.Offset), func(e erofs.Dirent) bool {
			return add(fuse.DirEntry{Name: e.Name, Mode: erofs.ModeOf(e.Type), Ino: e.Nid, Off: uint64(e.Next)})
		})
	}
	if err != nil {
		return s.failed("listing a directory", err)
	}
	return fuse.OK
}
