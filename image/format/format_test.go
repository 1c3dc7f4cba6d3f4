package format

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// tarball is a small layer.
func tarball(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, name := range []string{"a", "b"} {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: 5, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func section(data []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data)))
}

// build makes a lazy layer of the tarball.
func build(t testing.TB, opts ...estargz.Option) ([]byte, digest.Digest) {
	t.Helper()
	blob, err := estargz.Build(section(tarball(t)), opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	data, err := io.ReadAll(blob)
	if err != nil {
		t.Fatal(err)
	}
	return data, blob.TOCDigest()
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstded(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(data, nil)
}

// newFooter gives a zstd:chunked blob the footer of containers/storage since
// 1.50, which has the position of a tar-split that is empty here.
func newFooter(blob []byte) []byte {
	numbers := blob[len(blob)-40 : len(blob)-8]
	out := append([]byte{}, blob[:len(blob)-40-footerHeader]...)
	out = append(out, 0x50, 0x2a, 0x4d, 0x18, 64, 0, 0, 0)
	out = append(out, numbers...)
	out = append(out, make([]byte, 24)...)
	return append(out, "GNUlInUx"...)
}

func TestDetect(t *testing.T) {
	lazy, toc := build(t)
	chunked, zTOC := build(t, estargz.WithCompression(struct {
		*zstdchunked.Compressor
		*zstdchunked.Decompressor
	}{&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault}, &zstdchunked.Decompressor{}}))
	for _, tt := range []struct {
		name string
		blob []byte
		want Info
	}{
		{"eStargz", lazy, Info{EStargz, toc}},
		{"zstd:chunked", chunked, Info{ZstdChunked, zTOC}},
		{"zstd:chunked with the new footer", newFooter(chunked), Info{ZstdChunked, zTOC}},
		{"gzip", gzipped(t, tarball(t)), Info{Format: Gzip}},
		{"zstd", zstded(t, tarball(t)), Info{Format: Zstd}},
		{"tar", tarball(t), Info{Format: Tar}},
		{"empty tar", make([]byte, 1024), Info{Format: Tar}},
		{"nothing", nil, Info{Format: Unknown}},
		{"something else", []byte("hello"), Info{Format: Unknown}},
		{"a gzip header alone", []byte{0x1f, 0x8b}, Info{Format: Gzip}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Detect(bytes.NewReader(tt.blob), int64(len(tt.blob)))
			if err != nil || got != tt.want {
				t.Errorf("Detect = %+v, %v; want %+v", got, err, tt.want)
			}
		})
	}
}

func TestDetectBadTOC(t *testing.T) {
	lazy, _ := build(t)
	footer := lazy[len(lazy)-estargz.FooterSize:]
	chunked := zstded(t, tarball(t))
	frame := func(offset, length uint64) []byte {
		out := append([]byte{}, chunked...)
		out = append(out, 0x50, 0x2a, 0x4d, 0x18, 40, 0, 0, 0)
		out = binary.LittleEndian.AppendUint64(out, offset)
		out = binary.LittleEndian.AppendUint64(out, length)
		return append(append(out, make([]byte, 16)...), "GnUlInUx"...)
	}
	for name, blob := range map[string][]byte{
		"eStargz: offset past the end":   append(gzipped(t, []byte("x")), footer...),
		"eStargz: no TOC at the offset":  append(bytes.Repeat([]byte{0x1f, 0x8b}, len(lazy)), footer...),
		"zstd:chunked: past the end":     frame(1<<40, 10),
		"zstd:chunked: overflow":         frame(1<<63, 1<<63),
		"zstd:chunked: no bytes":         frame(0, 0),
		"zstd:chunked: no TOC at offset": frame(4, 8),
	} {
		if _, err := Detect(bytes.NewReader(blob), int64(len(blob))); !errors.Is(err, ErrTOC) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The blob is shorter than it is said to be.
	if _, err := Detect(bytes.NewReader(lazy[:100]), int64(len(lazy))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short blob: %v", err)
	}
}

func FuzzDetect(f *testing.F) {
	lazy, _ := build(f)
	f.Add(lazy)
	f.Add(gzipped(f, tarball(f)))
	f.Add(zstded(f, tarball(f)))
	f.Fuzz(func(t *testing.T, blob []byte) {
		info, err := Detect(bytes.NewReader(blob), int64(len(blob)))
		if err == nil && info.Format.Lazy() != (info.TOCDigest != "") {
			t.Errorf("%+v", info)
		}
	})
}
