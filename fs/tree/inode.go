package tree

import (
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// inode is one file of a layer and, after the merge, of the image. Two names
// that are hard links of each other share one.
type inode struct {
	kind   layer.Type   // never Hardlink
	ent    *layer.Entry // gives size and key of a Reg and target of a Symlink; nil for a Dir
	dir    *directory   // of a Dir
	xattrs []layer.Xattr
	mode   uint32 // 07777
	uid    uint32
	gid    uint32
	rdev   uint32 // of a Char or Block, in the kernel's 32-bit encoding
	nsec   uint32
	sec    int64 // modification time, seconds since 1970

	// Set by the merge: directory entries that lead here, "." and ".." too.
	nlink uint32
	// Set when the image is laid out.
	place place
}

// directory is what an inode that is a directory has besides.
type directory struct {
	children map[string]*inode // in one layer
	opaque   bool              // hides what lower layers have below it

	entries []dirent // in the merged tree, sorted; "." and ".." among them
	merged  bool     // entries may show more of what is below the run
}

// dirent is a name in a merged directory.
type dirent struct {
	name string
	ino  *inode
}

func newDir() *inode {
	return &inode{kind: layer.Dir, mode: 0o755, dir: &directory{children: make(map[string]*inode)}}
}

// isWhiteout reports whether overlayfs takes the inode for a whiteout: by
// definition any character device 0:0, however it came about.
func (in *inode) isWhiteout() bool { return in.kind == layer.Char && in.rdev == 0 }

// setTime sets the modification time as containerd does: times that do not fit
// its 64 bits of nanoseconds since 1970 become 1970.
func (in *inode) setTime(t time.Time) {
	in.sec, in.nsec = 0, 0
	if sec := t.Unix(); sec >= 0 && !t.After(time.Unix(0, 1<<63-1)) {
		in.sec, in.nsec = sec, uint32(t.Nanosecond())
	}
}

// makedev encodes a device number as mknod(2) and EROFS have it, in 32 bits.
// containerd passes larger numbers on to mknod(2), which drops the same bits.
func makedev(major, minor uint32) uint32 {
	return minor&0xff | major&0xfff<<8 | minor&0xfff00<<12
}
