package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// memory is an image in memory.
type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(m.b) {
		m.b = append(m.b, make([]byte, need-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

func TestImagesAreDeterministic(t *testing.T) {
	build := func(layers [][]layer.Entry, below bool) []byte {
		var m memory
		if _, err := Build(context.Background(), &m, layers, onSomething(below)); err != nil {
			t.Fatal(err)
		}
		return m.b
	}
	// Large enough directories for maps to be walked in all kinds of orders.
	layers := [][]layer.Entry{bigLayer(20, 200), append(bigLayer(7, 300), layer.Entry{Name: ".wh.w", Type: layer.Reg})}
	want, wantBelow := build(layers, false), build(layers, true)
	if bytes.Equal(want[erofs.SuperOffset:erofs.SuperOffset+erofs.SuperSize], wantBelow[erofs.SuperOffset:erofs.SuperOffset+erofs.SuperSize]) {
		t.Error("two images with the same UUID")
	}
	for _, procs := range []int{1, 2, 8} {
		old := runtime.GOMAXPROCS(procs)
		same := bytes.Equal(build(layers, false), want) && bytes.Equal(build(layers, true), wantBelow)
		runtime.GOMAXPROCS(old)
		if !same {
			t.Errorf("another image with %d processors", procs)
		}
	}
	// What lies in the caller's slices beside the order of entries is no matter.
	copied := [][]layer.Entry{append([]layer.Entry(nil), layers[0]...), append([]layer.Entry(nil), layers[1]...)}
	if !bytes.Equal(build(copied, false), want) {
		t.Error("another image of a copy of the entries")
	}
}

// The image of a fixed stack must never change without formatVersion: nodes keep
// images over upgrades.
func TestGoldenImage(t *testing.T) {
	stack := [][]file{
		{
			dir("usr", 0o755).at(1, 2), reg("usr/a", "aaa").owner(1000, 1<<31).at(1700000000, 123456789), hardlink("usr/b", "usr/a").chmod(0o4755),
			symlink("l", "usr/a"), char("null", 1, 3), reg("empty", "").xattr("user.x", []byte("y")), reg("gone", "x"),
		},
		{reg(".wh.gone", ""), reg("usr/.wh..wh..opq", ""), dir("usr", 0o700), reg("usr/\xff", "1")},
	}
	for _, c := range []struct {
		below bool
		want  string
	}{
		{false, "1e7d4912b7dc2b0529b993c01b2ceae75c0deb94f3dbe2661bd5d885d9c1c183"},
		{true, "4fbbc912b54bdd2aedf515a28afcae20922155fc58c4acb19d3167e3feb1fbfd"},
	} {
		var m memory
		if _, err := Build(context.Background(), &m, layersOf(stack), onSomething(c.below)); err != nil {
			t.Fatal(err)
		}
		if got := key(string(m.b)).String(); got != c.want {
			t.Errorf("below %t: image has digest %s, want %s", c.below, got, c.want)
		}
	}
}

func TestName(t *testing.T) {
	one, two := digest.FromString("1"), digest.FromString("2")
	seen := make(map[string]bool)
	for _, tocs := range [][]digest.Digest{nil, {one}, {two}, {one, two}, {two, one}} {
		for _, below := range [][]string{nil, {"/a"}, {"/b"}, {"/a", "/b"}, {"/b", "/a"}, {"/a\non \"/b\""}} {
			name := Name(tocs, below)
			if seen[name] {
				t.Errorf("%v on %q: name of another run", tocs, below)
			}
			seen[name] = true
		}
	}
	if got, want := Name([]digest.Digest{one}, nil), "88dfa7e41f74ae374dc418e1debcf4c4"; got != want {
		t.Errorf("name %s, want %s", got, want)
	}
}

// TestSizes puts directories, links, attributes and files of all kinds of sizes
// around those of blocks through fsck.erofs and the kernel.
func TestSizes(t *testing.T) {
	d := tempDir(t)
	var entries []layer.Entry
	add := func(e layer.Entry) {
		e.ModTime = t0
		entries = append(entries, e)
	}
	value := func(n int) []layer.Xattr {
		return []layer.Xattr{{Name: "user.v", Value: bytes.Repeat([]byte("v"), n)}}
	}
	links := make(map[string]int)
	for _, n := range []int{1, 31, 32, 3900, 4000, 4031, 4032, 4033, 4095} {
		for _, x := range []int{0, 1, 3000, 4000, 5000} {
			name := fmt.Sprintf("link-%d-%d", n, x)
			e := layer.Entry{Name: name, Type: layer.Symlink, LinkName: strings.Repeat("t", n)}
			if x > 0 {
				e.Xattrs = []layer.Xattr{{Name: "security.v", Value: bytes.Repeat([]byte("v"), x)}}
			}
			links[name] = n
			add(e)
		}
	}
	dirs := make(map[string]int)
	for _, n := range []int{0, 1, 2, 14, 15, 16, 17, 29, 30, 31, 60, 1000} {
		for _, x := range []int{0, 500, 4090, 5000} {
			name := fmt.Sprintf("dir-%d-%d", n, x)
			e := layer.Entry{Name: name, Type: layer.Dir, Mode: 0o755}
			if x > 0 {
				e.Xattrs = value(x)
			}
			add(e)
			dirs[name] = n
			for i := range n {
				add(layer.Entry{Name: fmt.Sprintf("%s/%0*d", name, 1+i%255|3, i), Type: layer.Reg})
			}
		}
	}
	files := make(map[string]int64)
	for _, n := range []int64{0, 1, 4095, 4096, 4097, 1 << 31, 1<<32 + 1, 5 << 30, 1<<43 - 1, 1 << 43} {
		for _, x := range []int{0, 4000, 65000} {
			name := fmt.Sprintf("file-%d-%d", n, x)
			e := layer.Entry{Name: name, Type: layer.Reg, Size: n, Key: key(name)}
			if x > 0 {
				e.Xattrs = value(x)
			}
			files[name] = n
			add(e)
		}
	}
	stats, err := buildImage(t, d+"/image", [][]layer.Entry{entries}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(len(entries) + 1); stats.Inodes != want || stats.Names != want {
		t.Errorf("%+v, want %d inodes and names", stats, want)
	}
	mountImage(t, d+"/image", d+"/m")
	for name, n := range links {
		if target, err := os.Readlink(d + "/m/" + name); err != nil || target != strings.Repeat("t", n) {
			t.Errorf("%s: %d bytes, %v", name, len(target), err)
		}
	}
	for name, n := range dirs {
		names, err := os.ReadDir(d + "/m/" + name)
		if err != nil || len(names) != n {
			t.Errorf("%s: %d names, %v", name, len(names), err)
		}
		for i := range n {
			if _, err := os.Lstat(fmt.Sprintf("%s/m/%s/%0*d", d, name, 1+i%255|3, i)); err != nil {
				t.Error(err)
			}
		}
	}
	for name, n := range files {
		p := d + "/m/" + name
		if fi, err := os.Stat(p); err != nil || fi.Size() != n {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
		if n > 0 {
			f, err := os.Open(p)
			if err != nil {
				t.Fatal(err)
			}
			last := []byte{1}
			if _, err := f.ReadAt(last, n-1); err != nil && err != io.EOF || last[0] != 0 {
				t.Errorf("%s: last byte %v, %v", name, last, err)
			}
			f.Close()
		}
	}
	for _, e := range entries {
		for _, x := range e.Xattrs {
			got := make([]byte, 1<<16)
			n, err := unix.Lgetxattr(d+"/m/"+e.Name, x.Name, got)
			if err != nil || !bytes.Equal(got[:n], x.Value) {
				t.Errorf("%s: attribute of %d bytes, want %d, %v", e.Name, n, len(x.Value), err)
			}
		}
	}
}

// TestFilledBlocks has the inodes end everywhere in a block.
func TestFilledBlocks(t *testing.T) {
	d := tempDir(t)
	var entries []layer.Entry
	full := false
	for n := range 64 {
		stats, err := buildImage(t, d+"/image", [][]layer.Entry{entries}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		full = full || stats.Bytes > 2*erofs.BlockSize
		entries = append(entries, layer.Entry{Name: string(rune('0' + n)), Type: layer.Fifo})
	}
	if !full {
		t.Error("no image has a full block of inodes")
	}
}

// TestLargeDirectory looks up every name of a directory of 50,000 and some names
// that are not there.
func TestLargeDirectory(t *testing.T) {
	d := tempDir(t)
	rng := rand.New(rand.NewPCG(1, 1))
	names := make(map[string]bool)
	for len(names) < 50000 {
		b := make([]byte, 1+rng.IntN(40))
		for i := range b {
			for b[i] == 0 || b[i] == '/' {
				b[i] = byte(rng.Uint32())
			}
		}
		if name := string(b); name != "." && name != ".." && !strings.HasPrefix(name, whiteoutPrefix) {
			names[name] = true
		}
	}
	var entries []layer.Entry
	for name := range names {
		entries = append(entries, layer.Entry{Name: "d/" + name, Type: layer.Fifo})
	}
	if _, err := buildImage(t, d+"/image", [][]layer.Entry{entries}, Options{}); err != nil {
		t.Fatal(err)
	}
	mountImage(t, d+"/image", d+"/m")
	got, err := os.ReadDir(d + "/m/d")
	if err != nil || len(got) != len(names) {
		t.Errorf("%d names, want %d, %v", len(got), len(names), err)
	}
	for _, e := range got {
		if !names[e.Name()] {
			t.Errorf("%q is not in the layer", e.Name())
		}
	}
	for name := range names {
		if err := unix.Access(d+"/m/d/"+name, unix.F_OK); err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		if other := name + "\x01"; !names[other] {
			if err := unix.Access(d+"/m/d/"+other, unix.F_OK); err != unix.ENOENT {
				t.Fatalf("%q: %v", other, err)
			}
		}
	}
}

func TestDeepest(t *testing.T) {
	d := tempDir(t)
	p := strings.Repeat("d/", maxDepth-1) + "f"
	if _, err := buildImage(t, d+"/image", [][]layer.Entry{{{Name: p, Type: layer.Reg}}}, Options{}); err != nil {
		t.Fatal(err)
	}
	mountImage(t, d+"/image", d+"/m")
	fd, err := unix.Open(d+"/m", unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range maxDepth - 1 {
		next, err := unix.Openat(fd, "d", unix.O_PATH, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = next
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, "f", &st, 0); err != nil {
		t.Error(err)
	}
	unix.Close(fd)
}

// failing fails after some bytes.
type failing struct {
	memory
	left int
}

var errFull = errors.New("disk full")

func (f *failing) WriteAt(p []byte, off int64) (int, error) {
	if len(p) > f.left {
		return 0, errFull
	}
	f.left -= len(p)
	return f.memory.WriteAt(p, off)
}

func TestFailedWriteLeavesNoFileSystem(t *testing.T) {
	layers := [][]layer.Entry{bigLayer(50, 100)}
	var whole memory
	if _, err := Build(context.Background(), &whole, layers, Options{}); err != nil {
		t.Fatal(err)
	}
	for _, left := range []int{0, 4096, len(whole.b) / 2, len(whole.b) - 1} {
		f := failing{left: left}
		if _, err := Build(context.Background(), &f, layers, Options{}); !errors.Is(err, errFull) {
			t.Errorf("%d bytes: %v", left, err)
		}
		if len(f.b) > erofs.SuperOffset && !bytes.Equal(f.b[erofs.SuperOffset:erofs.SuperOffset+4], make([]byte, 4)) {
			t.Errorf("%d bytes: there is a superblock", left)
		}
	}
}

func TestBuildEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var m memory
	if _, err := Build(ctx, &m, [][]layer.Entry{bigLayer(1, 1)}, Options{}); !errors.Is(err, context.Canceled) || len(m.b) > 0 {
		t.Errorf("got %v and %d bytes", err, len(m.b))
	}
}
