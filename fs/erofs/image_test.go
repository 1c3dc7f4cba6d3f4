package erofs_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// lookUp finds a name in the root.
func lookUp(t testing.TB, im *erofs.Image, name string) erofs.Inode {
	t.Helper()
	var root, in erofs.Inode
	err := im.Inode(im.Root(), &root)
	if err != nil {
		t.Fatal(err)
	}
	nid, typ, ok, err := im.Lookup(&root, name)
	if err != nil || !ok {
		t.Fatalf("look up %q: %t, %v", name, ok, err)
	}
	if err := im.Inode(nid, &in); err != nil {
		t.Fatal(err)
	}
	if typ != erofs.TypeOf(uint32(in.Mode)) || erofs.ModeOf(typ) != uint32(in.Mode)&0o170000 {
		t.Errorf("%q has type %d and mode %o", name, typ, in.Mode)
	}
	return in
}

func TestRead(t *testing.T) {
	im := openImage(t, someOfAll()...)
	if err := im.Verify(); err != nil {
		t.Error(err)
	}
	dir, file, empty := lookUp(t, im, "dir"), lookUp(t, im, "file"), lookUp(t, im, "empty")
	if dir.Mode != 0o41777 || dir.UID != 1 || dir.GID != 1<<31 || dir.Sec != 1700000000 || dir.Nsec != 123456789 || dir.Nlink != 2 {
		t.Errorf("dir: %+v", dir)
	}
	if file.Mode != 0o104755 || file.Size != 5 || file.Nlink != 2 || lookUp(t, im, "again").Nid != file.Nid {
		t.Errorf("file: %+v", file)
	}
	if null, disk := lookUp(t, im, "null"), lookUp(t, im, "disk"); null.Data != 0x103 || disk.Data != 300&0xff|259<<8|300&^0xff<<12 {
		t.Errorf("devices %x, %x", null.Data, disk.Data)
	}
	for name, want := range map[string]string{"link": "dir/../file", "long": strings.Repeat("t", 4095)} {
		in := lookUp(t, im, name)
		if target, err := im.Readlink(&in); string(target) != want {
			t.Errorf("%s: %q, %v", name, target, err)
		}
	}
	if key, ok, err := im.Key(&file); err != nil || !ok || key != sha256.Sum256([]byte("12345")) {
		t.Errorf("key %x, %t, %v", key, ok, err)
	}
	if _, ok, err := im.Key(&empty); ok || err != nil {
		t.Errorf("an empty file has a key, %v", err)
	}
	for _, wrong := range []func() error{
		func() error { _, err := im.Readlink(&file); return err },
		func() error { _, _, _, err := im.Lookup(&file, "x"); return err },
		func() error { return im.Dirents(&file, 0, nil) },
		func() error { return im.Inode(1, &dir) },
		func() error { return im.Inode(math.MaxUint64, &dir) },
		func() error { return im.Inode(math.MaxUint64/erofs.NidSize-1, &dir) },
	} {
		if err := wrong(); !errors.Is(err, erofs.ErrDamaged) {
			t.Error(err)
		}
	}
}

func TestXattrs(t *testing.T) {
	im := openImage(t, someOfAll()...)
	file := lookUp(t, im, "file")
	var names []string
	if err := im.Xattrs(&file, func(x erofs.Xattr) bool {
		if !x.Is(x.Prefix + x.Rest) {
			t.Error(x)
		}
		names = append(names, x.Prefix+x.Rest)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if want := []string{erofs.XattrMetacopy, erofs.XattrRedirect, "security.long", "user.x"}; !slices.Equal(names, want) {
		t.Errorf("attributes %q", names)
	}
	long, short := make([]byte, 5000), make([]byte, 4999)
	for _, dst := range [][]byte{nil, short, long} {
		if n, ok, err := im.Xattr(&file, "security.long", dst); n != 5000 || !ok || err != nil {
			t.Errorf("%d bytes, %t, %v", n, ok, err)
		}
	}
	if string(long) != strings.Repeat("l", 5000) || !bytes.Equal(short, make([]byte, len(short))) {
		t.Error("wrong value")
	}
	if _, ok, err := im.Xattr(&file, "user.y", nil); ok || err != nil {
		t.Error(ok, err)
	}
}

// TestDirents lists a directory of many blocks from each of its places on.
func TestDirents(t *testing.T) {
	im := openImage(t, someOfAll()...)
	dir := lookUp(t, im, "dir")
	var all []erofs.Dirent
	list := func(from int64, n int) (got []erofs.Dirent) {
		if err := im.Dirents(&dir, from, func(e erofs.Dirent) bool {
			got = append(got, e)
			return len(got) < n
		}); err != nil {
			t.Fatal(err)
		}
		return got
	}
	all = list(0, math.MaxInt)
	if len(all) != 502 || !slices.IsSortedFunc(all, func(a, b erofs.Dirent) int { return strings.Compare(a.Name, b.Name) }) {
		t.Errorf("%d names", len(all))
	}
	for i, e := range all {
		if got := list(e.Next, 3); !slices.Equal(got, all[i+1:min(i+4, len(all))]) {
			t.Fatalf("behind %q: %v", e.Name, got)
		}
		if nid, typ, ok, err := im.Lookup(&dir, e.Name); nid != e.Nid || typ != e.Type || !ok || err != nil {
			t.Errorf("%q: %d, %d, %t, %v", e.Name, nid, typ, ok, err)
		}
		if _, _, ok, err := im.Lookup(&dir, e.Name+"!"); ok || err != nil {
			t.Errorf("%q!: %t, %v", e.Name, ok, err)
		}
	}
	for _, place := range []int64{int64(dir.Size), math.MaxInt64} {
		if got := list(place, 1); got != nil {
			t.Errorf("at %d: %v", place, got)
		}
	}
	if err := im.Dirents(&dir, -1, nil); !errors.Is(err, erofs.ErrDamaged) {
		t.Error(err)
	}
}

// TestInodes checks that the walk over places finds what the directories have.
func TestInodes(t *testing.T) {
	im := openImage(t, someOfAll()...)
	want := map[uint64]bool{}
	for _, name := range []string{".", "dir"} {
		dir := lookUp(t, im, name)
		if err := im.Dirents(&dir, 0, func(e erofs.Dirent) bool { want[e.Nid] = true; return true }); err != nil {
			t.Fatal(err)
		}
	}
	got, last := 0, uint64(0)
	if err := im.Inodes(func(in *erofs.Inode) bool {
		if !want[in.Nid] || in.Nid <= last {
			t.Errorf("inode %d after %d", in.Nid, last)
		}
		got, last = got+1, in.Nid
		return true
	}); err != nil || got != len(want) {
		t.Errorf("%d inodes, want %d, %v", got, len(want), err)
	}
	if err := im.Inodes(func(*erofs.Inode) bool { got--; return false }); err != nil || got != len(want)-1 {
		t.Error("went on", err)
	}
}

// TestVerify damages each byte that counts.
func TestVerify(t *testing.T) {
	b := readImage(t, layer.Entry{Name: "a", Type: layer.Symlink, LinkName: "b"}, layer.Entry{Name: "c", Type: layer.Dir})
	verify := func() error {
		im, err := erofs.New(b)
		if err != nil {
			return err
		}
		return im.Verify()
	}
	if err := verify(); err != nil {
		t.Fatal(err)
	}
	for i := erofs.SuperOffset; i < len(b); i++ {
		b[i] ^= 0x10
		if err := verify(); !errors.Is(err, erofs.ErrDamaged) {
			t.Fatalf("byte %d: %v", i, err)
		}
		b[i] ^= 0x10
	}
	for _, n := range []int{0, 1, erofs.BlockSize - 1, erofs.BlockSize, len(b) - 1} {
		if _, err := erofs.New(b[:n]); !errors.Is(err, erofs.ErrDamaged) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	d := t.TempDir()
	for name, size := range map[string]int64{"empty": 0, "zeros": 1 << 16} {
		if err := os.WriteFile(d+"/"+name, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := erofs.Open(d + "/" + name); !errors.Is(err, erofs.ErrDamaged) || !strings.Contains(err.Error(), d+"/"+name) {
			t.Error(err)
		}
	}
	if _, err := erofs.Open(d + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestCutShort cuts an image's file while it is mapped.
func TestCutShort(t *testing.T) {
	path := buildImage(t, someOfAll()...)
	im, err := erofs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	dir, link := lookUp(t, im, "dir"), lookUp(t, im, "long")
	if err := os.Truncate(path, erofs.BlockSize); err != nil {
		t.Fatal(err)
	}
	var in erofs.Inode
	for name, do := range map[string]func() error{
		"Inode":    func() error { return im.Inode(im.Root(), &in) },
		"Lookup":   func() error { _, _, _, err := im.Lookup(&dir, "0"); return err },
		"Dirents":  func() error { return im.Dirents(&dir, 0, func(erofs.Dirent) bool { return true }) },
		"Xattrs":   func() error { return im.Xattrs(&dir, func(erofs.Xattr) bool { return true }) },
		"Key":      func() error { _, _, err := im.Key(&dir); return err },
		"Inodes":   func() error { return im.Inodes(func(*erofs.Inode) bool { return true }) },
		"Verify":   im.Verify,
		"Readlink": func() error { return nil }, // gives memory, and reads none
	} {
		if err := do(); (err == nil) != (name == "Readlink") || err != nil && !errors.Is(err, erofs.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := im.Readlink(&link); err != nil {
		t.Error(err)
	}
}

// TestForeignPanic checks that only faults in the image are taken for its damage.
func TestForeignPanic(t *testing.T) {
	im := openImage(t, someOfAll()...)
	dir := lookUp(t, im, "dir")
	elsewhere, err := unix.Mmap(-1, 0, 4096, unix.PROT_NONE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(elsewhere); err != nil {
			t.Error(err)
		}
	})
	var fault byte
	for name, bug := range map[string]func(){
		"nil":   func() { *(*byte)(nil) = 1 },
		"fault": func() { fault = elsewhere[0] },
		"panic": func() { panic("bug") },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			err := im.Dirents(&dir, 0, func(erofs.Dirent) bool { bug(); return true })
			t.Errorf("%s: %v, %d", name, err, fault)
		}()
	}
}

func TestNoAllocations(t *testing.T) {
	im := openImage(t, someOfAll()...)
	dir, file := lookUp(t, im, "dir"), lookUp(t, im, "file")
	var in erofs.Inode
	buf := make([]byte, 10)
	if n := testing.AllocsPerRun(100, func() {
		nid, _, ok, err := im.Lookup(&dir, "0100")
		if err == nil && ok {
			err = im.Inode(nid, &in)
		}
		if err == nil {
			_, ok, err = im.Key(&file)
		}
		if err == nil {
			_, _, err = im.Xattr(&file, "user.x", buf)
		}
		if err == nil {
			err = im.Dirents(&dir, 0, func(e erofs.Dirent) bool { return len(e.Name) > 0 })
		}
		if err != nil {
			t.Error(ok, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
