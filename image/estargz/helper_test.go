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
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/continuity/sysx"
	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"
	digest "github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type file struct {
	tar.Header
	contents []byte
}

func reg(name string, contents []byte) file {
	return file{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(contents))}, contents}
}

func dir(name string) file {
	return file{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}}
}

func makeTar(t testing.TB, files []file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if f.Format == tar.FormatUnknown {
			f.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(&f.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.contents); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func contents(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = "0123456789abcdef"[r.IntN(16)]
	}
	return b
}

// everything is a tar with all that a layer can have and a tool can lose.
func everything() []file {
	when := time.Date(2024, 2, 29, 12, 30, 15, 987654321, time.UTC)
	long := strings.Repeat("long-name-", 20)
	files := []file{
		{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "0123"}}},
		dir("./"),
		{Header: tar.Header{Typeflag: tar.TypeDir, Name: "./bin/", Mode: 0o1777, Uid: 3, Gid: 4, ModTime: when}},
		reg("bin/plain", []byte("plain")),
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "bin/setuid", Mode: 0o106755, Uid: 1 << 22, Gid: 1<<32 - 2, Size: 4, ModTime: when}, contents: []byte("suid")},
		{Header: tar.Header{Typeflag: tar.TypeLink, Name: "bin/hard", Linkname: "./bin/setuid", Mode: 0o6755, Uid: 1 << 22, Gid: 1<<32 - 2, ModTime: when}},
		{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/sym", Linkname: "../no/./where//x", Mode: 0o777, Uid: 5, ModTime: when.Add(time.Nanosecond)}},
		{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/sym-\xfe", Linkname: "bytes-\xff\x80", Mode: 0o777}},
		{Header: tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3, ModTime: when}},
		{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "dev/sda", Mode: 0o660, Devmajor: 259, Devminor: 70000}},
		{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "run/fifo", Mode: 0o600, ModTime: when}},
		{
			Header: tar.Header{
				Typeflag: tar.TypeReg, Name: "etc/attributes", Mode: 0o600, Size: 1, ModTime: when,
				PAXRecords: map[string]string{
					"SCHILY.xattr.user.binary": "a\x00\xff\n=b", "SCHILY.xattr.user.empty": "",
					"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
					"SCHILY.xattr.trusted.x":           "dropped by containerd",
					"VENDOR.unknown":                   "x",
				},
			},
			contents: []byte("x"),
		},
		{Header: tar.Header{Typeflag: tar.TypeDir, Name: "etc/dir/", Mode: 0o700, PAXRecords: map[string]string{"SCHILY.xattr.user.d": "1"}, ModTime: when}},
		reg("latin-\xe9\xff", []byte("not UTF-8")),
		reg("really-\uFFFD", []byte("U+FFFD itself")),
		reg("utf8-日本-é-\u2028-\\-\"-\n-\x01", []byte("odd")),
		reg(long+"/"+long+"/"+long, []byte("long")),
		{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "to-long", Linkname: long + "/" + long + "/" + long}},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "gnu-" + long + "-\xff", Mode: 0o644, Size: 3, Format: tar.FormatGNU, ModTime: when}, contents: []byte("gnu")},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "ustar", Mode: 0o644, Size: 5, Format: tar.FormatUSTAR, ModTime: when.Truncate(time.Second)}, contents: []byte("ustar")},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "epoch-and-a-half", Mode: 0o644, ModTime: time.Unix(0, 500_000_000)}},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "before-epoch", Mode: 0o644, ModTime: time.Unix(-5, 500_000_000)}},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "round-up", Mode: 0o644, ModTime: time.Unix(1_700_000_000, 999_999_999)}},
		reg("twice", []byte("first")),
		reg("between", contents(9, 3000)),
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "./twice", Mode: 0o600, Size: 6, ModTime: when}, contents: []byte("second")},
		dir("merged"),
		reg("merged/kept", []byte("kept")),
		{Header: tar.Header{Typeflag: tar.TypeDir, Name: "merged/", Mode: 0o711, ModTime: when}},
		reg("type-changes", []byte("a file first")),
		{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "type-changes", Linkname: "then a symlink"}},
		reg("implicit/parents/of/this", []byte("x")),
		{Header: tar.Header{Typeflag: tar.TypeDir, Name: "implicit/parents", Mode: 0o750}},
		reg("empty", nil),
		dir("data"),
	}
	for i, n := range []int{1, 1 << 20, 1<<20 + 1, 2<<20 + 5} {
		files = append(files, reg(fmt.Sprintf("data/%d", i), contents(uint64(i), n)))
	}
	return files
}

func section(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}

// made converts b and checks what the result says of itself.
func made(t testing.TB, b []byte, o Options) []byte {
	t.Helper()
	out, _ := result(t, b, o)
	return out
}

func result(t testing.TB, b []byte, o Options) ([]byte, Result) {
	t.Helper()
	var blob bytes.Buffer
	d, err := Convert(context.Background(), &blob, section(b), o)
	if err != nil {
		t.Fatal(err)
	}
	out := blob.Bytes()
	plain := gunzip(t, out)
	if d.DiffID != digest.FromBytes(plain) || d.UncompressedSize != int64(len(plain)) {
		t.Errorf("digests %+v are not of the blob", d)
	}
	stock, err := estargz.Open(section(out))
	if err != nil {
		t.Fatalf("the stock reader: %v", err)
	}
	if _, err := stock.VerifyTOC(d.TOC); err != nil {
		t.Errorf("the stock reader: %v", err)
	}
	format, toc, err := IsStargz(context.Background(), source(out))
	if err != nil || format != layer.Gzip || toc != d.TOC {
		t.Errorf("IsStargz: %v, %v, %v", format, toc, err)
	}
	return out, d
}

func gunzip(t testing.TB, b []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

type source []byte

func (s source) Size() int64 { return int64(len(s)) }

func (s source) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return bytes.NewReader(s).ReadAt(p, off)
}

// inode is what is compared of a file.
type inode struct {
	Mode             uint32
	UID, GID         uint32
	Rdev             uint64
	Links            uint64
	Size             int64
	ModTime          time.Time
	Link             string
	Xattrs           map[string]string
	Contents         [32]byte
	HardLinkedToName string // first name of the inode
}

// unpack unpacks a tar as containerd does, without the eStargz's own files,
// and returns what is then there.
func unpack(t *testing.T, plain []byte) map[string]inode {
	t.Helper()
	root := t.TempDir()
	if _, err := archive.Apply(context.Background(), root, bytes.NewReader(plain)); err != nil {
		t.Fatal(err)
	}
	return scan(t, root)
}

// scan returns what is below root, but for the eStargz's own files, which it
// removes.
func scan(t *testing.T, root string) map[string]inode {
	t.Helper()
	for _, own := range []string{estargz.TOCTarName, estargz.NoPrefetchLandmark, estargz.PrefetchLandmark} {
		if err := os.Remove(filepath.Join(root, own)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	tree, first := map[string]inode{}, map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, p)
		st := fi.Sys().(*syscall.Stat_t)
		n := inode{
			Mode: st.Mode, UID: st.Uid, GID: st.Gid, Rdev: st.Rdev, Links: st.Nlink, ModTime: fi.ModTime().UTC(),
			Xattrs: map[string]string{},
		}
		if !d.IsDir() {
			n.Size = st.Size
			if first[st.Ino] == "" {
				first[st.Ino] = name
			}
			n.HardLinkedToName = first[st.Ino]
		}
		if fi.Mode()&fs.ModeSymlink != 0 {
			if n.Link, err = os.Readlink(p); err != nil {
				return err
			}
		}
		if fi.Mode().IsRegular() {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			n.Contents = sha256.Sum256(b)
		}
		names, err := sysx.LListxattr(p)
		if err != nil {
			return err
		}
		for _, x := range names {
			v, err := sysx.LGetxattr(p, x)
			if err != nil {
				return err
			}
			n.Xattrs[x] = string(v)
		}
		tree[name] = n
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func sameTree(t *testing.T, got, want map[string]inode) {
	t.Helper()
	for name, w := range want {
		g, ok := got[name]
		if !ok {
			t.Errorf("%q is missing", name)
			continue
		}
		// A directory that no entry is for, and an overlay's mark of a deletion,
		// has the time of its making.
		if time.Since(w.ModTime) < time.Hour && time.Since(g.ModTime) < time.Hour {
			w.ModTime, g.ModTime = time.Time{}, time.Time{}
		}
		if !reflect.DeepEqual(g, w) {
			t.Errorf("%q\n got %+v\nwant %+v", name, g, w)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%q is new", name)
		}
	}
}
