package fusetree

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
)

// xattrs is what is in an image of extended attributes that are shown.
type xattrs struct {
	any  bool
	acls bool
}

// hidden reports whether an attribute is not shown: where a file has its contents,
// those of overlayfs that say where else they are.
func (s *Server) hidden(x erofs.Xattr) bool {
	return !s.cfg.Names && (x.Is(erofs.XattrMetacopy) || x.Is(erofs.XattrRedirect))
}

// surveyXattrs looks at all inodes of an image.
func surveyXattrs(im *erofs.Image, hidden func(erofs.Xattr) bool) (found xattrs, err error) {
	var bad error
	err = im.Inodes(func(in *erofs.Inode) bool {
		bad = im.Xattrs(in, func(x erofs.Xattr) bool {
			found.any = found.any || !hidden(x)
			found.acls = found.acls || x.Is(erofs.XattrACL) || x.Is(erofs.XattrDefaultACL)
			return true
		})
		return bad == nil
	})
	if err == nil {
		err = bad
	}
	return found, err
}

// GetXAttr returns an attribute. Where no inode has any the kernel is told so once:
// it would ask for capabilities at each start of a program, and for opaque marks
// at each look-up of a directory.
func (s *Server) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if !s.xattrs.any {
		return 0, fuse.ENOSYS
	}
	if !s.cfg.Names && (name == erofs.XattrMetacopy || name == erofs.XattrRedirect) {
		return 0, fuse.ENOATTR
	}
	var in erofs.Inode
	err := s.inode(h, &in)
	var n int
	var ok bool
	if err == nil {
		n, ok, err = s.image.Xattr(&in, name, dest)
	}
	switch {
	case err != nil:
		return 0, s.failed("getxattr", err)
	case !ok:
		return 0, fuse.ENOATTR
	case n > len(dest):
		return uint32(n), fuse.ERANGE
	}
	return uint32(n), fuse.OK
}

// ListXAttr returns the names of a node's attributes, each with a NUL.
func (s *Server) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	var in erofs.Inode
	err := s.inode(h, &in)
	n := 0
	if err == nil {
		err = s.image.Xattrs(&in, func(x erofs.Xattr) bool {
			if s.hidden(x) {
				return true
			}
			end := n + len(x.Prefix) + len(x.Rest) + 1
			if end <= len(dest) {
				copy(dest[n:], x.Prefix)
				copy(dest[n+len(x.Prefix):], x.Rest)
				dest[end-1] = 0
			}
			n = end
			return true
		})
	}
	if err != nil {
		return 0, s.failed("listxattr", err)
	}
	if n > len(dest) {
		return uint32(n), fuse.ERANGE
	}
	return uint32(n), fuse.OK
}
