package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
)

// repeat is s over and over, up to n bytes.
type repeat struct {
	s string
	n int64
	i int
}

func (r *repeat) Read(p []byte) (int, error) {
	if r.n == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.n)]
	for done := 0; done < len(p); {
		m := copy(p[done:], r.s[r.i:])
		done, r.i = done+m, (r.i+m)%len(r.s)
	}
	r.n -= int64(len(p))
	return len(p), nil
}

// TestHugeTOC has TOCs that are small in the blob and large in memory.
func TestHugeTOC(t *testing.T) {
	const dir = `{"name":"a","type":"dir"}`
	three := entries(dir, dir, dir)
	if err := new(TOC).parse(strings.NewReader(three), 3); err != nil {
		t.Errorf("3 of 3 entries: got %v", err)
	}
	if err := new(TOC).parse(strings.NewReader(three), 2); !errors.Is(err, ErrLimit) {
		t.Errorf("3 of 2 entries: got %v", err)
	}
	var large bytes.Buffer
	large.Write(make([]byte, payload))
	zw := gzip.NewWriter(&large)
	if err := tar.NewWriter(zw).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: estargz.TOCTarName, Size: MaxTOCJSONBytes + 1}); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	large.Write(gzipFooter(payload))
	if _, err := ReadTOC(context.Background(), &memory{b: large.Bytes()}, ""); !errors.Is(err, ErrLimit) {
		t.Errorf("JSON in a tar: got %v", err)
	}
	// Where no header tells the size, as with zstd, what is read is counted.
	limited := &limitedReader{ctx: context.Background(), r: &repeat{s: " ", n: 1001}, left: 1000}
	if n, err := io.Copy(io.Discard, limited); !errors.Is(err, ErrLimit) || n > 1000 {
		t.Errorf("read %d of 1000 bytes: got %v", n, err)
	}
	limited = &limitedReader{ctx: context.Background(), r: &repeat{s: " ", n: 1000}, left: 1000}
	if n, err := io.Copy(io.Discard, limited); err != nil || n != 1000 || !limited.done {
		t.Errorf("read %d of 1000 bytes: got %v", n, err)
	}
	far := &sparse{size: 1 << 30, tail: gzipFooter(1000)}
	if _, err := ReadTOC(context.Background(), far, ""); !errors.Is(err, ErrLimit) || far.read > maxFooterBytes {
		t.Errorf("TOC of 1 GiB: got %v after %d bytes", err, far.read)
	}
}

// sparse is a Source of zeros but for its end.
type sparse struct {
	size int64
	tail []byte
	read int64
}

func (s *sparse) Size() int64 { return s.size }

func (s *sparse) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	s.read += int64(len(p))
	clear(p)
	copy(p[max(0, s.size-int64(len(s.tail))-off):], s.tail)
	return len(p), nil
}
