package fusetree

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/tree"
)

// acl returns a POSIX ACL that lets a user read.
func acl(user uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, 6, 1<<32 - 1}, {2, 4, user}, {4, 0, 1<<32 - 1}, {16, 4, 1<<32 - 1}, {32, 0, 1<<32 - 1}} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

// someOfAll has every kind of file, with and without attributes.
func someOfAll(xattrs bool, names int) []file {
	at := time.Unix(1700000000, 123456789)
	files := []file{
		{Entry: layer.Entry{Name: "dir", Type: layer.Dir, Mode: 0o1777, UID: 1, GID: 1 << 31, ModTime: at}},
		reg("file", []byte("12345")), reg("empty", nil), reg("big", random(1, 3<<20+17)),
		{Entry: layer.Entry{Name: "again", Type: layer.Hardlink, LinkName: "file", Mode: 0o4755, ModTime: at}},
		{Entry: layer.Entry{Name: "link", Type: layer.Symlink, LinkName: "dir/../file"}},
		{Entry: layer.Entry{Name: "long", Type: layer.Symlink, LinkName: strings.Repeat("t", 4095)}},
		{Entry: layer.Entry{Name: "null", Type: layer.Char, Major: 1, Minor: 3, Mode: 0o666}},
		{Entry: layer.Entry{Name: "disk", Type: layer.Block, Major: 259, Minor: 300}},
		{Entry: layer.Entry{Name: "fifo", Type: layer.Fifo, Mode: 0o622}},
		directory("deep"),
		{Entry: layer.Entry{Name: "deep/down", Type: layer.Dir, Mode: 0o711}},
		{Entry: layer.Entry{Name: "deep/down/dir", Type: layer.Dir, Mode: 0o700, UID: 5}},
		reg("deep/.wh.gone", nil), reg("deep/down/.wh..wh..opq", nil),
	}
	for i := range names {
		files = append(files, reg(fmt.Sprintf("dir/%0*d", 1+i%200, i), []byte(fmt.Sprint(i))))
	}
	if xattrs {
		files[1].Xattrs = []layer.Xattr{
			{Name: "security.capability", Value: append([]byte{1, 0, 0, 2, 0, 4, 0, 0}, make([]byte, 12)...)},
			{Name: erofs.XattrACL, Value: acl(1000)},
			{Name: "user.long", Value: bytes.Repeat([]byte("l"), 5000)},
			{Name: "user.none"},
		}
		files[0].Xattrs = []layer.Xattr{{Name: erofs.XattrDefaultACL, Value: acl(1000)}}
	}
	return files
}

// below makes whiteouts and opaque directories stay.
var below = tree.Options{Below: func(string) (bool, error) { return true, nil }}

// walk says what is to be seen below a directory, by path, in the order of
// listings sorted by name.
func walk(t *testing.T, root string, contents bool) (lines []string) {
	t.Helper()
	var visit func(p string)
	visit = func(p string) {
		full := filepath.Join(root, p)
		var st unix.Stat_t
		if err := unix.Lstat(full, &st); err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%q ino %d mode %o owner %d:%d nlink %d rdev %x size %d blocks %d+%d times %v %v %v xattrs%s",
			p, st.Ino, st.Mode, st.Uid, st.Gid, st.Nlink, st.Rdev, st.Size, st.Blocks, st.Blksize, st.Atim, st.Mtim, st.Ctim, xattrsOf(t, full))
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			target, err := os.Readlink(full)
			line += fmt.Sprint(" -> ", target, err)
		case unix.S_IFREG:
			if contents {
				b, err := os.ReadFile(full)
				line += fmt.Sprint(" ", len(b), cacheKey(b), err)
			}
		}
		lines = append(lines, line)
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			names, err := os.ReadDir(full)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range names {
				visit(filepath.Join(p, e.Name()))
			}
		}
	}
	visit("")
	return lines
}

func xattrsOf(t *testing.T, path string) string {
	t.Helper()
	n, err := unix.Llistxattr(path, nil)
	if err != nil || n == 0 {
		if err != nil {
			t.Fatalf("list attributes of %s: %v", path, err)
		}
		return ""
	}
	buf, value := make([]byte, n), make([]byte, 64<<10)
	n, err = unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatalf("list attributes of %s: %v", path, err)
	}
	var out []string
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Errorf("%s of %s: %v", name, path, err)
		}
		out = append(out, fmt.Sprintf(" %s=%x", name, value[:n]))
	}
	slices.Sort(out)
	return strings.Join(out, "")
}

// withContents leaves out the attributes that say where contents are.
func withContents(lines []string) []string {
	for i, l := range lines {
		lines[i] = refs.ReplaceAllString(l, "")
	}
	return lines
}

var refs = regexp.MustCompile(` trusted\.overlay\.(metacopy|redirect)=[0-9a-f]*`)

func same(t *testing.T, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Fatalf("FUSE shows %d files, the kernel %d; the first that differs:\n%s\n%s", len(got), len(want), got[min(i, len(got)-1)], want[min(i, len(want)-1)])
		}
	}
}

// TestSameAsKernel compares a mount with the kernel's of the same image, by
// itself and as a lower layer: with contents, and of names alone.
func TestSameAsKernel(t *testing.T) {
	for _, xattrs := range []bool{false, true} {
		t.Run(fmt.Sprint("xattrs ", xattrs), func(t *testing.T) {
			m := newMountOf(t, someOfAll(xattrs, 1200), below, passthrough())
			kernel := filepath.Join(m.root, "kernel")
			if err := os.Mkdir(kernel, 0o755); err != nil {
				t.Fatal(err)
			}
			mountUntilEnd(t, m.image, kernel, "erofs", unix.MS_RDONLY, "")
			names := newMountOf(t, someOfAll(xattrs, 1200), below, Config{Names: true})
			for range 2 { // and from the caches
				want := walk(t, kernel, false)
				same(t, walk(t, names.cfg.Dir, false), want)
				same(t, walk(t, m.cfg.Dir, false), withContents(want))
			}
		})
		t.Run(fmt.Sprint("as a lower layer, xattrs ", xattrs), func(t *testing.T) {
			files := slices.DeleteFunc(someOfAll(xattrs, 300), func(f file) bool { return strings.Contains(f.Name, ".wh.") })
			one, two, three := newMount(t, files, passthrough()), newMount(t, files, passthrough()), newMount(t, files, Config{Names: true})
			two.store.completeAll(t)
			three.store.completeAll(t)
			kernel := filepath.Join(two.root, "kernel")
			if err := os.Mkdir(kernel, 0o755); err != nil {
				t.Fatal(err)
			}
			mountUntilEnd(t, two.image, kernel, "erofs", unix.MS_RDONLY, "")
			got := walk(t, one.overlay(t, one.cfg.Dir), true)
			want := walk(t, two.overlay(t, kernel+"::"+two.store.dir), true)
			names := walk(t, three.overlay(t, three.cfg.Dir+"::"+three.store.dir), true)
			for _, lines := range [][]string{got, want, names} {
				for i := range lines {
					lines[i] = withoutPlace(lines[i])
				}
			}
			same(t, got[1:], want[1:]) // the root itself is the upper directory's
			same(t, names[1:], want[1:])
			if n := count(&three.stats.Opens) + count(&three.stats.Reads) + three.store.reads.Load(); n > 0 {
				t.Errorf("%d requests for contents", n)
			}
		})
	}
}

// withoutPlace leaves out what overlayfs takes from the file system that the
// contents are on.
func withoutPlace(line string) string {
	before, after, _ := strings.Cut(line, " ino ")
	_, after, _ = strings.Cut(after, " mode ")
	middle, after, _ := strings.Cut(after, " blocks ")
	_, after, _ = strings.Cut(after, " times ")
	return before + " mode " + middle + " times " + after
}

// TestOverNormalLayer has whiteouts and opaque directories hide what is below.
func TestOverNormalLayer(t *testing.T) {
	m := newMountOf(t, []file{
		reg(".wh.gone", nil), directory("opaque"), directory("merged"), reg("opaque/.wh..wh..opq", nil), reg("opaque/new", []byte("n")), reg("merged/new", []byte("n")),
	}, below, passthrough())
	normal := filepath.Join(m.root, "normal")
	for _, dir := range []string{"opaque", "merged"} {
		if err := os.MkdirAll(filepath.Join(normal, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"gone", "there", "opaque/old", "merged/old"} {
		if err := os.WriteFile(filepath.Join(normal, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root := m.overlay(t, m.cfg.Dir+":"+normal)
	for dir, want := range map[string]string{"": "merged opaque there", "opaque": "new", "merged": "new old"} {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		if got := strings.Join(names, " "); got != want || err != nil {
			t.Errorf("%q: %q, want %q, %v", dir, got, want, err)
		}
	}
}

// TestWriteAbove changes files of the tree through an overlay.
func TestWriteAbove(t *testing.T) {
	content := random(2, 1<<20)
	m := newMount(t, []file{reg("d/small", []byte("small")), reg("d/big", content), reg("d/gone", nil)}, passthrough())
	root := m.overlay(t, m.cfg.Dir)
	for _, name := range []string{"d/small", "d/big"} {
		p := filepath.Join(root, name)
		f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("more"); err != nil {
			t.Error(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	mustRead(t, filepath.Join(root, "d/small"), []byte("smallmore"))
	mustRead(t, filepath.Join(root, "d/big"), append(slices.Clone(content), "more"...))
	mustRead(t, m.path("d/big"), content)
	if err := os.Remove(filepath.Join(root, "d/gone")); err != nil {
		t.Error(err)
	}
	if err := os.Rename(filepath.Join(root, "d/small"), filepath.Join(root, "moved")); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(m.path("d/new"), nil, 0o644); err == nil {
		t.Error("the tree itself can be written")
	}
}
