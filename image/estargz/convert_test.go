package estargz

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// TestConvertLosesNothing unpacks a layer as containerd does, before and after
// its conversion, and compares the two trees and the new TOC with the first.
func TestConvertLosesNothing(t *testing.T) {
	plain := makeTar(t, everything())
	want := unpack(t, plain)
	if len(want) < 40 {
		t.Fatalf("the tar has %d files", len(want))
	}
	for name, o := range map[string]Options{
		"defaults":    {},
		"small chunk": {ChunkSize: 64 << 10, Level: 1},
		"prioritized": {Prioritized: []string{"data/3", "bin/hard", "etc/missing", "type-changes"}},
	} {
		t.Run(name, func(t *testing.T) {
			out := made(t, plain, o)
			sameTree(t, unpack(t, gunzip(t, out)), want)
			tocEquals(t, out, want)
		})
	}
}

// tocEquals compares the names and metadata that fs/layer reads with tree.
func tocEquals(t *testing.T, blob []byte, tree map[string]inode) {
	t.Helper()
	toc, err := layer.ReadTOC(context.Background(), source(blob), "")
	if err != nil {
		t.Fatal(err)
	}
	types := map[layer.Type]uint32{
		layer.Dir: syscall.S_IFDIR, layer.Reg: syscall.S_IFREG, layer.Symlink: syscall.S_IFLNK,
		layer.Char: syscall.S_IFCHR, layer.Block: syscall.S_IFBLK, layer.Fifo: syscall.S_IFIFO,
	}
	for _, e := range toc.Entries {
		if e.Name == "" {
			continue // containerd leaves the root as it is
		}
		want, ok := tree[e.Name]
		if !ok {
			t.Errorf("the TOC has %q", e.Name)
			continue
		}
		if e.Type == layer.Hardlink {
			if want.HardLinkedToName != tree[e.LinkName].HardLinkedToName {
				t.Errorf("%q is no link to %q", e.Name, e.LinkName)
			}
			continue
		}
		mode := types[e.Type] | e.Mode
		if e.Type == layer.Symlink {
			mode = syscall.S_IFLNK | 0o777
		}
		if mode != want.Mode || e.UID != want.UID || e.GID != want.GID || e.Size != want.Size && e.Type == layer.Reg ||
			!e.ModTime.Equal(want.ModTime) || e.Type == layer.Symlink && e.LinkName != want.Link {
			t.Errorf("%q: the TOC has %+v, want %+v", e.Name, e, want)
		}
		attrs := map[string]string{}
		for _, x := range e.Xattrs {
			attrs[x.Name] = string(x.Value)
		}
		if !reflect.DeepEqual(attrs, want.Xattrs) {
			t.Errorf("%q: extended attributes %q, want %q", e.Name, attrs, want.Xattrs)
		}
	}
	names := map[string]bool{}
	for _, e := range toc.Entries {
		for p := e.Name; p != ""; p = parent(p) {
			names[p] = true
		}
	}
	for name := range tree {
		if !names[name] {
			t.Errorf("the TOC lacks %q", name)
		}
	}
}

func TestConvertIsDeterministic(t *testing.T) {
	plain, o := makeTar(t, everything()), Options{Level: 1, ChunkSize: 256 << 10}
	var zipped, zstded bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	if _, err := zw.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	ze, err := zstd.NewWriter(&zstded, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ze.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := ze.Close(); err != nil {
		t.Fatal(err)
	}
	want := made(t, plain, o)
	for name, b := range map[string][]byte{"tar": plain, "gzip": zipped.Bytes(), "zstd": zstded.Bytes()} {
		if got := made(t, b, o); !bytes.Equal(got, want) {
			t.Errorf("%s: other bytes", name)
		}
	}
	// What was converted once converts to the same again.
	if got := made(t, want, o); !bytes.Equal(got, want) {
		t.Error("converted twice: other bytes")
	}
}

// TestConvertManyEmptyFiles has a layer of nearly nothing but headers.
func TestConvertManyEmptyFiles(t *testing.T) {
	files := []file{reg("one", []byte("1"))}
	for i := range 5000 {
		files = append(files, file{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: fmt.Sprintf("link-%d", i), Linkname: "one"}})
	}
	toc, err := layer.ReadTOC(context.Background(), source(made(t, makeTar(t, files), Options{})), "")
	if err != nil || len(toc.Entries) != len(files) {
		t.Errorf("%d entries, %v", len(toc.Entries), err)
	}
	// And a layer of nothing.
	made(t, makeTar(t, nil), Options{})
}

// sparseTar is a tar with a file of 5 MiB in GNU's sparse format 1.0: data at
// its begin and end. archive/tar cannot write it, so its parts are put together.
func sparseTar(t testing.TB) ([]byte, []byte) {
	t.Helper()
	want := make([]byte, 5<<20)
	copy(want, "begin")
	copy(want[len(want)-3:], "end")
	body := fmt.Sprintf("2\n0\n5\n%d\n3\n", len(want)-3)
	body += strings.Repeat("\x00", 512-len(body)) + "beginend"
	record := func(k, v string) string {
		n := len(k) + len(v) + 3
		n += len(fmt.Sprint(n))
		if len(fmt.Sprint(n)) != len(fmt.Sprint(n-1)) {
			n = len(k) + len(v) + 3 + len(fmt.Sprint(n))
		}
		return fmt.Sprintf("%d %s=%s\n", n, k, v)
	}
	pax := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") +
		record("GNU.sparse.name", "sparse") + record("GNU.sparse.realsize", fmt.Sprint(len(want)))
	part := func(typ byte, name, contents string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(contents)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, contents); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		h := b.Bytes()
		h[156] = typ
		copy(h[148:156], "        ")
		sum := 0
		for _, c := range h[:512] {
			sum += int(c)
		}
		copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
		return h
	}
	return slices.Concat(part('x', "PaxHeaders/sparse", pax), part('0', "GNUSparseFile.0/sparse", body), make([]byte, 1024)), want
}

func TestConvertSparse(t *testing.T) {
	plain, want := sparseTar(t)
	tree := unpack(t, plain)
	if tree["sparse"].Contents != sha256.Sum256(want) {
		t.Fatalf("the test's tar is not right: %+v", tree)
	}
	out := made(t, plain, Options{})
	sameTree(t, unpack(t, gunzip(t, out)), tree)
	tocEquals(t, out, tree)
}

func TestConvertRefuses(t *testing.T) {
	link := func(name, to string) file {
		return file{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}}
	}
	sym := func(name, to string) file {
		return file{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}}
	}
	with := func(f file, change func(*tar.Header)) file {
		change(&f.Header)
		return f
	}
	for name, files := range map[string][]file{
		"replaced after a hard link":      {reg("a", []byte("1")), link("b", "a"), reg("a", []byte("2"))},
		"below a symlink":                 {dir("real"), sym("lib", "real"), reg("lib/x", nil)},
		"below a file":                    {reg("a", nil), reg("a/b", nil)},
		"file over a directory":           {dir("a"), reg("a/b", nil), reg("a", nil)},
		"file over an implicit directory": {reg("a/b", nil), reg("a", nil)},
		"directory twice with xattrs":     {with(dir("a"), func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": "1"} }), dir("a")},
		"hard link to another layer":      {link("b", "usr/bin/a")},
		"hard link to itself":             {link("b", "b")},
		"hard link to a directory":        {dir("a"), link("b", "a")},
		"hard link upwards":               {link("b", "../a")},
		"name upwards":                    {reg("a/../b", nil)},
		"long component":                  {reg(strings.Repeat("x", 256), nil)},
		"deep":                            {reg(strings.Repeat("x/", 4096)+"x", nil)},
		"device number":                   {{Header: tar.Header{Typeflag: tar.TypeChar, Name: "dev", Devmajor: 4096}}},
		"owner":                           {with(reg("a", nil), func(h *tar.Header) { h.Uid = 1 << 32 })},
		"owner -1":                        {with(reg("a", nil), func(h *tar.Header) { h.Uid = 1<<32 - 1 })},
		"continuous file":                 {with(reg("a", nil), func(h *tar.Header) { h.Typeflag = tar.TypeCont })},
		"symlink to nothing":              {sym("a", "")},
		"root is a file":                  {with(reg("x", nil), func(h *tar.Header) { h.Name = "."; h.Typeflag = tar.TypeFifo })},
		"xattrs": {with(reg("a", nil), func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.user.a": strings.Repeat("x", 65_530)}
		})},
		"xattr name": {with(reg("a", nil), func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr.user.\xff": "x"} })},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Convert(context.Background(), io.Discard, section(makeTar(t, files)), Options{})
			if !errors.Is(err, ErrNotConvertible) {
				t.Errorf("got %v", err)
			}
			t.Log(err)
		})
	}
}

func TestConvertErrors(t *testing.T) {
	plain := makeTar(t, everything())
	for name, b := range map[string][]byte{
		"no tar":        []byte(strings.Repeat("this is no tar ", 100)),
		"cut tar":       plain[:len(plain)/2],
		"damaged gzip":  append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}, contents(1, 600)...),
		"truncated zip": made(t, plain, Options{})[:100_000],
	} {
		if _, err := Convert(context.Background(), io.Discard, section(b), Options{}); err == nil || errors.Is(err, ErrNotConvertible) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for name, o := range map[string]Options{"level": {Level: 10}, "chunk size": {ChunkSize: -1}, "large chunk": {ChunkSize: 1 << 30}} {
		if _, err := Convert(context.Background(), io.Discard, section(plain), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestConvertStops ends contexts at every stage, and fails to write at some:
// no goroutine (see TestMain) and no file may stay.
func TestConvertStops(t *testing.T) {
	temp := t.TempDir()
	plain := makeTar(t, everything())
	full := errors.New("full")
	for _, room := range []int{0, 1000, 100_000, 1_000_000} {
		if _, err := Convert(context.Background(), &limited{room, full}, section(plain), Options{TempDir: temp}); !errors.Is(err, full) {
			t.Errorf("room for %d bytes: got %v", room, err)
		}
	}
	for _, after := range []int64{0, 1, 30, 200} {
		ctx, cancel := context.WithCancel(context.Background())
		r := io.NewSectionReader(&cancelAfter{bytes.NewReader(plain), cancel, after}, 0, int64(len(plain)))
		if _, err := Convert(ctx, io.Discard, r, Options{TempDir: temp}); !errors.Is(err, context.Canceled) {
			t.Errorf("after %d reads: got %v", after, err)
		}
		cancel()
	}
	ctx, cancel := context.WithCancel(context.Background())
	if _, err := Convert(ctx, writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil }), section(plain), Options{TempDir: temp}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled while it writes: got %v", err)
	}
	left, err := os.ReadDir(temp)
	if err != nil || len(left) > 0 {
		t.Errorf("%v stay, %v", left, err)
	}
	if _, err := Convert(context.Background(), io.Discard, section(plain), Options{TempDir: filepath.Join(temp, "none")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such directory: got %v", err)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// limited takes n bytes, then fails.
type limited struct {
	n   int
	err error
}

func (l *limited) Write(p []byte) (int, error) {
	if l.n -= len(p); l.n < 0 {
		return 0, l.err
	}
	return len(p), nil
}

type cancelAfter struct {
	io.ReaderAt
	cancel context.CancelFunc
	left   int64
}

func (c *cancelAfter) ReadAt(p []byte, off int64) (int, error) {
	if c.left--; c.left < 0 {
		c.cancel()
	}
	return c.ReaderAt.ReadAt(p, off)
}
