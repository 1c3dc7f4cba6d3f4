package fusetree

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// many is a directory of n names.
func many(n int) (files []file) {
	for i := range n {
		files = append(files, reg(fmt.Sprintf("d/%06d", i), []byte(fmt.Sprint(i))))
	}
	return files
}

// TestAskedOnce counts the requests of a kernel that has seen all before.
func TestAskedOnce(t *testing.T) {
	m := newMount(t, append(many(2000), file{Entry: someOfAll(false, 0)[5].Entry}, reg("file", nil)), passthrough())
	requests := func() [4]int64 {
		s := m.Stats()
		return [4]int64{count(&s.Lookups), count(&s.ReadDirs), count(&s.Opens), count(&s.Reads)}
	}
	look := func() {
		if entries, err := os.ReadDir(m.path("d")); err != nil || len(entries) != 2000 {
			t.Errorf("%d names, %v", len(entries), err)
		}
		for i := range 2000 {
			if fi, err := os.Lstat(m.path(fmt.Sprintf("d/%06d", i))); err != nil || fi.Size() == 0 {
				t.Fatal(err)
			}
		}
		if _, err := os.Lstat(m.path("d/none")); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		if _, err := os.Readlink(m.path("link")); err != nil {
			t.Error(err)
		}
	}
	look()
	before := requests()
	if before[0] > 10 {
		t.Errorf("%d look-ups after a listing that had the attributes", before[0])
	}
	look()
	if after := requests(); after != before {
		t.Errorf("requests from %v to %v when all was known", before, after)
	}
}

// TestResumedListing reads a directory in steps, from places in between.
func TestResumedListing(t *testing.T) {
	m := newMount(t, many(3000), passthrough())
	list := func(step int) (names []string) {
		f, err := os.Open(m.path("d"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for {
			got, err := f.Readdirnames(step)
			if names = append(names, got...); err != nil {
				return names
			}
		}
	}
	all := list(3000)
	if slices.Sort(all); len(slices.Compact(all)) != 3000 {
		t.Errorf("%d names", len(all))
	}
	for _, step := range []int{1, 17, 1000} {
		got := list(step)
		if slices.Sort(got); !slices.Equal(got, all) {
			t.Errorf("in steps of %d: %d names", step, len(got))
		}
	}
	// The places are those that getdents(2) gave.
	fd, err := unix.Open(m.path("d"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 512)
	want := map[int64]string{} // what was read from a place
	for {
		place, err := unix.Seek(fd, 0, unix.SEEK_CUR)
		if err != nil {
			t.Fatal(err)
		}
		clear(buf) // what is between names is left as it was
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		want[place] = string(buf[:n])
	}
	for place, entries := range want {
		if _, err := unix.Seek(fd, place, unix.SEEK_SET); err != nil {
			t.Fatal(err)
		}
		clear(buf)
		if n, err := unix.Getdents(fd, buf); err != nil || string(buf[:n]) != entries {
			t.Fatalf("from place %d: other entries, %v", place, err)
		}
	}
}

// TestXattrsAreAskedForOnce checks that an image without attributes ends the
// kernel's asking, and that one with some shows none of overlayfs' own.
func TestXattrs(t *testing.T) {
	none, some := newMount(t, someOfAll(false, 0)[:4], passthrough()), newMountOf(t, someOfAll(true, 0), below, passthrough())
	for range 2 {
		if _, err := unix.Lgetxattr(none.path("file"), "security.capability", nil); !errors.Is(err, unix.EOPNOTSUPP) {
			t.Error(err)
		}
	}
	for name, want := range map[string]error{
		"user.long": nil, "user.none": nil, "user.other": unix.ENODATA,
		"trusted.overlay.metacopy": unix.ENODATA, "trusted.overlay.redirect": unix.ENODATA,
	} {
		if _, err := unix.Lgetxattr(some.path("file"), name, make([]byte, 8192)); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := unix.Lgetxattr(some.path("file"), "user.long", make([]byte, 100)); !errors.Is(err, unix.ERANGE) {
		t.Error(err)
	}
	if n, err := unix.Lgetxattr(some.path("file"), "user.long", nil); n != 5000 || err != nil {
		t.Error(n, err)
	}
	if _, err := unix.Llistxattr(some.path("file"), make([]byte, 10)); !errors.Is(err, unix.ERANGE) {
		t.Error(err)
	}
	if got := xattrsOf(t, some.path("deep/down")); got != " trusted.overlay.opaque=79" {
		t.Errorf("opaque directory: %s", got)
	}
}

func TestStatfs(t *testing.T) {
	m := newMount(t, nil, passthrough())
	var got, want unix.Statfs_t
	if err := errors.Join(unix.Statfs(m.cfg.Dir, &got), unix.Statfs(m.store.dir, &want)); err != nil {
		t.Fatal(err)
	}
	if got.Blocks != want.Blocks || got.Bsize != want.Bsize || got.Blocks == 0 {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// TestDamaged cuts the image short while it is served: what is lost is an error,
// which the log has, too.
func TestDamaged(t *testing.T) {
	m := newMount(t, many(100), passthrough())
	if _, err := os.Lstat(m.path("d/000000")); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(m.image, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(m.path("d/000001")); !errors.Is(err, unix.EIO) {
		t.Error(err)
	}
	if _, err := os.ReadDir(m.path("d")); !errors.Is(err, unix.EIO) {
		t.Error(err)
	}
	m.close(t)
	if m.log.Len() == 0 {
		t.Error("nothing is logged")
	}
}

// TestNoAllocations has the server answer what a walk asks for.
func TestNoAllocations(t *testing.T) {
	m := newMount(t, append(many(10), someOfAll(true, 0)...), passthrough())
	var root, dir, link, small fuse.EntryOut
	look := func(parent uint64, name string, out *fuse.EntryOut) {
		if s := m.Lookup(nil, &fuse.InHeader{NodeId: parent}, name, out); !s.Ok() || name != "none" && out.NodeId == 0 {
			t.Errorf("%s: %v", name, s)
		}
	}
	look(fuse.FUSE_ROOT_ID, "d", &dir)
	look(fuse.FUSE_ROOT_ID, "link", &link)
	look(dir.NodeId, "000001", &small)
	buf := make([]byte, 4096)
	if n := testing.AllocsPerRun(100, func() {
		look(fuse.FUSE_ROOT_ID, "d", &dir)
		look(fuse.FUSE_ROOT_ID, "none", &root)
		var attr fuse.AttrOut
		list := fuse.NewDirEntryList(buf, 0)
		for _, s := range []fuse.Status{
			m.GetAttr(nil, &fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: dir.NodeId}}, &attr),
			m.ReadDirPlus(nil, &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: dir.NodeId}}, list),
			m.Open(nil, &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: small.NodeId}}, new(fuse.OpenOut)),
		} {
			if !s.Ok() {
				t.Error(s)
			}
		}
		if _, s := m.Readlink(nil, &fuse.InHeader{NodeId: link.NodeId}); !s.Ok() {
			t.Error(s)
		}
		if _, s := m.GetXAttr(nil, &fuse.InHeader{NodeId: link.NodeId}, "user.x", nil); s != fuse.ENOATTR {
			t.Error(s)
		}
	}); n > 8 { // what this function itself makes: headers, answers, a list
		t.Errorf("%v allocations", n)
	}
}
