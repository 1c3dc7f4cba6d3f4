package tree

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
)

// maxReadDepth is how many directories deep checkReader looks: each holds a
// descriptor.
const maxReadDepth = 64

// checkReader compares what package erofs reads of an image with what the kernel
// shows of it.
func checkReader(t testing.TB, image, mounted string) {
	t.Helper()
	im, err := erofs.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if err := im.Verify(); err != nil {
		t.Error(err)
	}
	var visit func(dir *os.File, nid uint64, path string, depth int)
	visit = func(dir *os.File, nid uint64, path string, depth int) {
		defer dir.Close()
		var in, child erofs.Inode
		if err := im.Inode(nid, &in); err != nil {
			t.Fatalf("%q: %v", path, err)
		}
		want, err := dir.Readdirnames(-1)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		if err := im.Dirents(&in, 0, func(e erofs.Dirent) bool {
			if e.Name != "." && e.Name != ".." {
				got = append(got, strings.Clone(e.Name))
			}
			return true
		}); err != nil {
			t.Fatalf("%q: %v", path, err)
		}
		if slices.Sort(want); !slices.Equal(got, want) {
			t.Fatalf("%q: names %q, the kernel has %q", path, got, want)
		}
		for _, name := range got {
			nid, typ, ok, err := im.Lookup(&in, name)
			if err == nil && ok {
				err = im.Inode(nid, &child)
			}
			if err != nil || !ok || erofs.TypeOf(uint32(child.Mode)) != typ {
				t.Fatalf("%q/%q: %t, %v", path, name, ok, err)
			}
			at := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
			if got, want := readNode(t, im, &child), kernelNode(t, at); got != want {
				t.Errorf("%q/%q: %s\nthe kernel has %s", path, name, got, want)
			}
			if child.IsDir() && depth < maxReadDepth {
				next, err := os.Open(at)
				if err != nil {
					t.Fatal(err)
				}
				visit(next, nid, path+"/"+name, depth+1)
			}
		}
	}
	root, err := os.Open(mounted)
	if err != nil {
		t.Fatal(err)
	}
	visit(root, im.Root(), "", 0)
}

// readNode says what package erofs reads of an inode.
func readNode(t testing.TB, im *erofs.Image, in *erofs.Inode) string {
	t.Helper()
	var target string
	if erofs.TypeOf(uint32(in.Mode)) == erofs.TypeOf(unix.S_IFLNK) {
		b, err := im.Readlink(in)
		if err != nil {
			t.Error(err)
		}
		target = string(b)
	}
	var xattrs []string
	if err := im.Xattrs(in, func(x erofs.Xattr) bool {
		xattrs = append(xattrs, fmt.Sprintf("%s%s=%x", x.Prefix, x.Rest, x.Value))
		return true
	}); err != nil {
		t.Error(err)
	}
	slices.Sort(xattrs)
	rdev := uint64(0)
	switch in.Mode & unix.S_IFMT {
	case unix.S_IFCHR, unix.S_IFBLK:
		rdev = unix.Mkdev(in.Data>>8&0xfff, in.Data&0xff|in.Data>>12&0xfff00)
	}
	return fmt.Sprint(in.Nid, in.Mode, in.Size, in.UID, in.GID, in.Nlink, in.Sec, in.Nsec, rdev, target, xattrs)
}

// kernelNode says the same of what the kernel shows at a path.
func kernelNode(t testing.TB, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	var target string
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		var err error
		if target, err = os.Readlink(path); err != nil {
			t.Error(err)
		}
	}
	n, err := unix.Llistxattr(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, n+1) // one more: for none there would be no list
	if n, err = unix.Llistxattr(path, buf); err != nil {
		t.Fatal(err)
	}
	var xattrs []string
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, nil)
		value := make([]byte, n+1)
		if err == nil {
			n, err = unix.Lgetxattr(path, name, value)
		}
		if err != nil {
			t.Fatal(err)
		}
		xattrs = append(xattrs, fmt.Sprintf("%s=%x", name, value[:n]))
	}
	slices.Sort(xattrs)
	return fmt.Sprint(st.Ino, st.Mode, st.Size, st.Uid, st.Gid, st.Nlink, st.Mtim.Sec, st.Mtim.Nsec, st.Rdev, target, xattrs)
}
