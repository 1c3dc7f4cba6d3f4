package tree

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// file is an entry with its contents, from which a test makes both the tar that
// containerd unpacks and the entries that this package merges.
type file struct {
	layer.Entry
	content string
}

func key(content string) layer.Key { return sha256.Sum256([]byte(content)) }

// entries returns what package layer would return for the files.
func entries(files []file) []layer.Entry {
	out := make([]layer.Entry, len(files))
	for i, f := range files {
		out[i] = f.Entry
		if f.Type == layer.Reg {
			out[i].Size = int64(len(f.content))
			if out[i].Size > 0 {
				out[i].Key = key(f.content)
			}
		}
	}
	return out
}

func layersOf(stack [][]file) [][]layer.Entry {
	out := make([][]layer.Entry, len(stack))
	for i, files := range stack {
		out[i] = entries(files)
	}
	return out
}

var typeflags = map[layer.Type]byte{
	layer.Dir: tar.TypeDir, layer.Reg: tar.TypeReg, layer.Symlink: tar.TypeSymlink, layer.Hardlink: tar.TypeLink,
	layer.Char: tar.TypeChar, layer.Block: tar.TypeBlock, layer.Fifo: tar.TypeFifo,
}

// tarOf returns the layer's tar.
func tarOf(t testing.TB, files []file) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{
			Format: tar.FormatPAX, Typeflag: typeflags[f.Type], Name: f.Name, Linkname: f.LinkName,
			Mode: int64(f.Mode), Uid: int(f.UID), Gid: int(f.GID), ModTime: f.ModTime,
			Devmajor: int64(f.Major), Devminor: int64(f.Minor),
		}
		if f.Type == layer.Reg {
			h.Size = int64(len(f.content))
		}
		if f.Type == layer.Dir {
			h.Name += "/"
		}
		for _, x := range f.Xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+x.Name] = string(x.Value)
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("tar of %+v: %v", f, err)
		}
		if f.Type == layer.Reg {
			if _, err := w.Write([]byte(f.content)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// quiet is where containerd's warnings of attributes that it ignores go.
var quiet = &log.Entry{Logger: &logrus.Logger{Out: io.Discard}}

// unpack applies a layer to a new directory as containerd's differ does
// (core/diff/apply/apply_linux.go), on the directories of the layers below it,
// highest first.
func unpack(t testing.TB, dir string, lowers []string, files []file) error {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var opts []archive.ApplyOpt
	if len(lowers) > 0 {
		opts = append(opts, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(lowers))
	}
	ctx := log.WithLogger(context.Background(), quiet)
	_, err := archive.Apply(ctx, dir, bytes.NewReader(tarOf(t, files)), opts...)
	return err
}

// tempDir is t.TempDir with a short path: overlay's options have one page.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "tree")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// mountOverlay mounts an overlay at a new directory until the test ends.
func mountOverlay(t testing.TB, target, options string) {
	t.Helper()
	if err := os.MkdirAll(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("overlay", target, "overlay", 0, options); err != nil {
		t.Fatalf("overlay with %s: %v", options, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Errorf("unmount %s: %v", target, err)
		}
	})
}

// buildImage builds an image in a file and has fsck.erofs look at it.
func buildImage(t testing.TB, name string, layers [][]layer.Entry, opts Options) (Stats, error) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stats, err := Build(context.Background(), f, layers, opts)
	if err != nil {
		return stats, err
	}
	if fi, err := f.Stat(); err != nil || fi.Size() != stats.Bytes {
		t.Errorf("image has %d bytes, Stats says %d (%v)", fi.Size(), stats.Bytes, err)
	}
	fsck(t, name)
	return stats, nil
}

// mountImage mounts an image at a new directory until the test ends, and has our
// own reader look at it, too.
func mountImage(t testing.TB, image, target string) {
	t.Helper()
	if err := os.MkdirAll(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(image, target, "erofs", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NOATIME, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, 0); err != nil {
			t.Errorf("unmount %s: %v", target, err)
		}
	})
	checkReader(t, image, target)
}

// writeObjects makes an object directory of the contents of a stack.
func writeObjects(t testing.TB, dir string, stack [][]file) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, files := range stack {
		for _, f := range files {
			if f.Type != layer.Reg || f.content == "" {
				continue
			}
			p := filepath.Join(dir, key(f.content).String())
			if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p, []byte(f.content), 0o444); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// node is what can be seen of a file from outside.
type node struct {
	lost    bool   // its directory lists it, but it cannot be found
	mode    uint32 // with type
	uid     uint32
	gid     uint32
	rdev    uint64
	size    int64 // not of directories
	mtime   unix.Timespec
	target  string // of a symbolic link
	content string // of a regular file
	xattrs  string
	group   string // first name of the inode
	nlink   uint64 // not of directories
}

func (n node) String() string {
	if n.lost {
		return "listed, but not to be found"
	}
	return fmt.Sprintf("mode %o owner %d:%d rdev %x size %d mtime %d.%09d target %q content %q xattrs %s group %q nlink %d",
		n.mode, n.uid, n.gid, n.rdev, n.size, n.mtime.Sec, n.mtime.Nsec, n.target, n.content, n.xattrs, n.group, n.nlink)
}

// walk returns all that is below a directory, by path, and "" for itself.
func walk(t testing.TB, root string) map[string]node {
	t.Helper()
	nodes := make(map[string]node)
	groups := make(map[[2]uint64]string)
	var visit func(p string)
	visit = func(p string) {
		full := filepath.Join(root, p)
		if p != "" {
			full = root + "/" + p
		}
		var st unix.Stat_t
		if err := unix.Lstat(full, &st); err != nil {
			if err == unix.ENOENT && p != "" {
				nodes[p] = node{lost: true}
				return
			}
			t.Fatalf("stat %q: %v", p, err)
		}
		n := node{mode: st.Mode, uid: st.Uid, gid: st.Gid, rdev: st.Rdev, mtime: st.Mtim, xattrs: xattrsOf(t, full)}
		id := [2]uint64{st.Dev, st.Ino}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			nodes[p] = n
			names, err := os.ReadDir(full)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range names {
				visit(strings.TrimPrefix(p+"/"+e.Name(), "/"))
			}
			return
		case unix.S_IFLNK:
			target, err := os.Readlink(full)
			if err != nil {
				t.Fatal(err)
			}
			n.target = target
		case unix.S_IFREG:
			content, err := os.ReadFile(full)
			if err != nil {
				t.Errorf("read %q: %v", p, err)
			}
			n.content = string(content)
		}
		n.size, n.nlink = st.Size, st.Nlink
		if _, ok := groups[id]; !ok {
			groups[id] = p
		}
		n.group = groups[id]
		nodes[p] = n
	}
	visit("")
	return nodes
}

func xattrsOf(t testing.TB, p string) string {
	t.Helper()
	buf := make([]byte, 128<<10)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		t.Fatalf("list attributes of %q: %v", p, err)
	}
	var out []string
	for _, name := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			t.Fatalf("attribute %s of %q: %v", name, p, err)
		}
		out = append(out, fmt.Sprintf("%s=%x", name, value[:n]))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// compare reports how got differs from want, which was unpacked at or after
// start: where want's times are that of the unpacking they are not compared.
// Numbers of links are compared only with nlinks.
//
// Of whiteouts in a directory that is in one layer only, overlayfs shows the
// names, and finds nothing there: those that want has, got may have.
func compare(t testing.TB, want, got map[string]node, start time.Time, nlinks bool) {
	t.Helper()
	groupSize := make(map[string]uint64)
	for _, n := range want {
		groupSize[n.group]++
	}
	for p, w := range want {
		g, ok := got[p]
		if w.lost && (!ok || g.lost) {
			continue
		}
		if !ok {
			t.Errorf("%q is missing: %v", p, w)
			continue
		}
		if p == "" || w.mode&unix.S_IFMT == unix.S_IFDIR && w.mtime.Sec >= start.Unix() {
			w.mtime = g.mtime
		}
		// What overlayfs says of a layer's inode counts names that are hidden;
		// an image counts those that are there.
		w.nlink = g.nlink
		if nlinks && w.mode&unix.S_IFMT != unix.S_IFDIR {
			w.nlink = groupSize[w.group]
		}
		if w != g {
			t.Errorf("%q differs:\nwant %v\ngot  %v", p, w, g)
		}
	}
	for p, g := range got {
		if _, ok := want[p]; !ok {
			t.Errorf("%q should not be there: %v", p, g)
		}
	}
}
