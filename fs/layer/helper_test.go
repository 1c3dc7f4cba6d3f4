package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a Source that counts its reads.
type memory struct {
	b     []byte
	reads atomic.Int64
	bytes atomic.Int64
}

func (m *memory) Size() int64 { return int64(len(m.b)) }

func (m *memory) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	m.reads.Add(1)
	m.bytes.Add(int64(len(p)))
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return bytes.NewReader(m.b).ReadAt(p, off)
}

// file is one entry of a tar to be made.
type file struct {
	tar.Header
	contents []byte
}

func reg(name string, contents []byte) file {
	return file{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(contents))}, contents}
}

func makeTar(t testing.TB, files []file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		f.Format = tar.FormatPAX
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

// contents is n bytes that compress to about half.
func contents(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = "0123456789abcdef"[r.IntN(16)]
	}
	return b
}

// sample is the tar that most tests use: every kind of entry, and files of
// sizes about the chunk sizes in use.
func sample() []file {
	when := time.Date(2024, 2, 29, 12, 30, 15, 0, time.UTC)
	files := []file{
		{Header: tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}},
		{Header: tar.Header{Typeflag: tar.TypeDir, Name: "./bin/", Mode: 0o1777, Uid: 1, Gid: 2, ModTime: when}},
		{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/link", Linkname: "../etc/././x", Mode: 0o777}},
		{Header: tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}},
		{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "dev/sda", Mode: 0o660, Devmajor: 8, Devminor: 1048575}},
		{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "run/fifo", Mode: 0o600}},
		reg("etc/.wh.gone", nil),
		reg("etc/empty", nil),
		reg("etc/a b\nc\"\\\u2028é", contents(1, 3)),
		{
			Header: tar.Header{
				Typeflag: tar.TypeReg, Name: "/usr//./bin/su", Mode: 0o104755, Uid: 1 << 31, Gid: 1<<32 - 2, Size: 5, ModTime: when,
				PAXRecords: map[string]string{
					"SCHILY.xattr.user.b": "\x00\xff", "SCHILY.xattr.user.a": "1", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02",
					"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.overlay.x": "y", "SCHILY.xattr.odd": "z",
				},
			},
			contents: []byte("hello"),
		},
		{Header: tar.Header{Typeflag: tar.TypeLink, Name: "usr/bin/sudo", Linkname: "./usr/bin/su", Mode: 0o4755}},
		reg("same/1", contents(7, 5000)),
		reg("same/2", contents(7, 5000)),
	}
	files = append(files, file{Header: tar.Header{Typeflag: tar.TypeDir, Name: "data/", Mode: 0o750}},
		file{Header: tar.Header{Typeflag: tar.TypeDir, Name: "usr/", Mode: 0o755}},
		file{Header: tar.Header{Typeflag: tar.TypeDir, Name: "usr/bin/", Mode: 0o755}})
	for i, n := range []int{1, 511, 4095, 4096, 4097, 8192, 65536, 100_000, 1 << 20, 3<<20 + 17} {
		files = append(files, reg(fmt.Sprintf("data/%d-%d", i, n), contents(uint64(n), n)))
	}
	return files
}

// gzipLayer builds an eStargz with the stock library.
func gzipLayer(t testing.TB, files []file, opts ...estargz.Option) []byte {
	t.Helper()
	b := makeTar(t, files)
	blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))),
		append([]estargz.Option{estargz.WithCompressionLevel(1), estargz.WithParallelism(1)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	out, err := io.ReadAll(blob)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// zstdLayer builds a zstd:chunked layer with the stock library.
func zstdLayer(t testing.TB, files []file, opts ...estargz.Option) []byte {
	t.Helper()
	return gzipLayer(t, files, append(opts, estargz.WithCompression(struct {
		*zstdchunked.Compressor
		*zstdchunked.Decompressor
	}{&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault}, new(zstdchunked.Decompressor)}))...)
}

// indexOf keeps toc on disk and loads it again.
func indexOf(t testing.TB, toc *TOC) *Index {
	t.Helper()
	dir := t.TempDir()
	if err := Save(dir, toc); err != nil {
		t.Fatal(err)
	}
	x, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

func sectionOf(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}
