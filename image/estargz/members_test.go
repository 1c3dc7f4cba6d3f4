package estargz

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// streams are the compressed bytes of each object's chunks.
func streams(t testing.TB, blob []byte) map[layer.Key][][]byte {
	t.Helper()
	toc, err := layer.ReadTOC(context.Background(), source(blob), "")
	if err != nil {
		t.Fatal(err)
	}
	out := map[layer.Key][][]byte{}
	for _, o := range toc.Objects {
		for _, c := range o.Chunks {
			out[o.Key] = append(out[o.Key], blob[c.BlobOffset:c.BlobOffset+c.BlobSize])
		}
	}
	return out
}

// TestMembersHoldOneChunk checks that what the TOC says a chunk's stream is, is
// one gzip member with that chunk and nothing else.
func TestMembersHoldOneChunk(t *testing.T) {
	files := everything()
	blob := made(t, makeTar(t, files), Options{ChunkSize: 300_000})
	toc, err := layer.ReadTOC(context.Background(), source(blob), "")
	if err != nil {
		t.Fatal(err)
	}
	chunks := 0
	for _, o := range toc.Objects {
		for _, c := range o.Chunks {
			chunks++
			in := bytes.NewReader(blob[c.BlobOffset : c.BlobOffset+c.BlobSize])
			zr, err := gzip.NewReader(in)
			if err != nil {
				t.Fatal(err)
			}
			zr.Multistream(false)
			n, err := io.Copy(io.Discard, zr)
			if err != nil || n != c.Size || in.Len() != 0 {
				t.Errorf("%v: a member of %d bytes, %d bytes left behind it, %v", c, n, in.Len(), err)
			}
		}
	}
	if chunks < 20 {
		t.Errorf("%d chunks", chunks)
	}
}

// TestUnchangedFiles gives a layer other times, owners and neighbours: the
// contents that stay are the same bytes, compressed.
func TestUnchangedFiles(t *testing.T) {
	when := time.Date(2025, 1, 2, 3, 4, 5, 6, time.UTC)
	one := func(name string, seed uint64, n int, change func(*tar.Header)) file {
		f := reg(name, contents(seed, n))
		if change != nil {
			change(&f.Header)
		}
		return f
	}
	later := func(h *tar.Header) {
		h.ModTime, h.Uid, h.PAXRecords = when, 1000, map[string]string{"SCHILY.xattr.user.x": "y"}
	}
	before := []file{one("a", 1, 10, nil), one("b", 2, 200_000, nil), one("c", 3, 700, nil), one("d", 4, 2_500_000, nil)}
	after := []file{dir("new"), one("new/first", 9, 77, nil), one("a", 1, 10, later), one("b", 2, 200_000, later), one("z", 8, 1, nil), one("c", 3, 700, later), one("d", 4, 2_500_000, later)}
	was, is := streams(t, made(t, makeTar(t, before), Options{})), streams(t, made(t, makeTar(t, after), Options{}))
	if len(was) != 4 || len(is) != 6 {
		t.Fatalf("%d and %d objects", len(was), len(is))
	}
	for key, members := range was {
		if !slices.EqualFunc(members, is[key], bytes.Equal) {
			t.Errorf("object %x: other bytes", key[:4])
		}
	}
}

// TestStockReaderReads reads every file of a layer with the library that the
// format comes from.
func TestStockReaderReads(t *testing.T) {
	small := []file{reg("a", contents(1, 3000)), reg("b", nil), reg("c", []byte("x"))}
	for chunkSize, files := range map[int][]file{1: small, 4 << 10: everything(), 1 << 20: everything()} {
		want := map[string]file{}
		for _, f := range files {
			want[cleanName(f.Name)] = f
		}
		r, err := estargz.Open(section(made(t, makeTar(t, files), Options{ChunkSize: chunkSize})))
		if err != nil {
			t.Fatal(err)
		}
		for name, w := range want {
			if w.Typeflag != tar.TypeReg || !utf8.ValidString(name) { // which it cannot find
				continue
			}
			f, err := r.OpenFile(name)
			if err != nil {
				t.Errorf("%q: %v", name, err)
				continue
			}
			got := make([]byte, f.Size())
			if _, err := io.ReadFull(f, got); err != nil || !bytes.Equal(got, w.contents) {
				t.Errorf("%q, chunks of %d bytes: %d bytes, %v", name, chunkSize, len(got), err)
			}
		}
	}
}

// TestConvertOnAnyMachine has many small and some large files, and machines
// with one and with several processors.
func TestConvertOnAnyMachine(t *testing.T) {
	var files []file
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 500 {
		n := r.IntN(3000)
		if i%100 == 0 {
			n = r.IntN(1_000_000)
		}
		files = append(files, reg("f"+string(rune('a'+i%26))+string(rune('0'+i)), contents(uint64(i), n)))
	}
	plain := makeTar(t, files)
	for _, level := range []int{1, 5, 6, 9} {
		o := Options{Level: level, ChunkSize: 100_000}
		want := made(t, plain, o)
		for _, processors := range []int{1, 2, 7} {
			was := runtime.GOMAXPROCS(processors)
			got := made(t, plain, o)
			runtime.GOMAXPROCS(was)
			if !bytes.Equal(got, want) {
				t.Errorf("level %d, %d processors: other bytes", level, processors)
			}
		}
	}
}
