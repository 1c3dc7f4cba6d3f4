package layer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
)

// FuzzReadTOC reads whole blobs: footer, compression and JSON.
func FuzzReadTOC(f *testing.F) {
	small := sample()[:13]
	for _, blob := range [][]byte{
		gzipLayer(f, small), zstdLayer(f, small), blobWith(f, entries()), blobWith(f, twoChunks(3, 3, 0)),
		gzipFooter(0), zstdFooter(64, "GNUlInUx", 8, 1, 1, 1), nil,
	} {
		f.Add(blob)
	}
	for _, name := range []string{"skopeo-1.9.zst", "storage-1.59.zst"} {
		blob, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(blob)
	}
	f.Fuzz(func(t *testing.T, blob []byte) {
		toc, err := ReadTOC(context.Background(), &memory{b: blob}, "")
		checkTOC(t, toc, err)
	})
}

// FuzzTOCJSON spares the fuzzer the compression.
func FuzzTOCJSON(f *testing.F) {
	f.Add(entries())
	f.Add(twoChunks(3, 3, 0))
	f.Add(entries(`{"name":"a","type":"reg","size":3,"offset":1,"memberSize":5,"chunkDigest":"` + d + `"}`))
	f.Add(entries(`{"name":"/a//./b/","type":"dir","mode":17407,"uid":1,"gid":2,"modtime":"2024-02-29T12:30:15.5+02:00"}`,
		`{"name":"\ufffd","nameBytes":"/w==","type":"symlink","linkName":"..//x"}`,
		`{"name":"c","type":"char","devMajor":1,"devMinor":3}`, `{"name":"h","type":"hardlink","linkName":"c"}`,
		`{"name":"x","type":"reg","xattrs":{"user.a":"AA==","trusted.b":""}}`))
	f.Fuzz(func(t *testing.T, text string) {
		f := footer{format: Gzip, tocStart: payload, tocEnd: payload + 1, payloadEnd: payload}
		toc := &TOC{footer: f}
		err := toc.parse(strings.NewReader(text), 100)
		checkTOC(t, toc, err)
		names := parser{toc: &TOC{footer: f}}
		if again := names.parse(strings.NewReader(text), 100); err == nil && (again != nil || !reflect.DeepEqual(names.toc.Entries, toc.Entries)) {
			t.Fatalf("the entries alone: %v, %+v", again, names.toc.Entries)
		}
	})
}

// checkTOC holds for every TOC that is accepted; an error is of a known kind.
func checkTOC(t *testing.T, toc *TOC, err error) {
	t.Helper()
	if err != nil {
		for _, known := range []error{ErrNotStargz, ErrInvalid, ErrLimit, ErrNotLazy} {
			if errors.Is(err, known) {
				return
			}
		}
		t.Fatalf("error of no kind: %v", err)
	}
	objects := map[Key]int64{}
	for _, o := range toc.Objects {
		if _, twice := objects[o.Key]; twice || o.Size <= 0 || len(o.Chunks) == 0 || keyOf(o.Chunks) != o.Key {
			t.Fatalf("object %+v", o)
		}
		objects[o.Key] = o.Size
		var size int64
		for _, c := range o.Chunks {
			if c.Offset != size || c.Size <= 0 || c.Size > MaxChunkBytes || c.InnerOffset < 0 || c.InnerOffset > MaxInnerOffset ||
				c.BlobOffset < 0 || c.BlobSize <= 0 || c.BlobOffset+c.BlobSize > toc.footer.payloadEnd {
				t.Fatalf("chunk %+v of %+v", c, o)
			}
			size += c.Size
		}
		if size != o.Size {
			t.Fatalf("object %+v of %d bytes", o, size)
		}
	}
	if !slices.IsSorted(toc.bounds) || len(toc.bounds) == 0 || toc.bounds[len(toc.bounds)-1] != toc.footer.payloadEnd {
		t.Fatalf("bounds %d of a payload that ends at %d", toc.bounds, toc.footer.payloadEnd)
	}
	for _, e := range toc.Entries {
		clean := bytes.Clone([]byte(e.Name))
		if name, err := cleanName(clean); err != nil || string(name) != e.Name {
			t.Fatalf("name %q, clean %q, %v", e.Name, name, err)
		}
		if size, ok := objects[e.Key]; (e.Size > 0) != (e.Key != Key{}) || e.Size > 0 && (!ok || size != e.Size) || e.Size < 0 {
			t.Fatalf("%+v: object of %d bytes", e, size)
		}
		if e.Mode > 0o7777 || e.Type < Dir || e.Type > Fifo || (e.LinkName != "") != (e.Type == Symlink || e.Type == Hardlink) {
			t.Fatalf("%+v", e)
		}
	}
	// What is kept on disk is the same.
	var w writerAt
	toc.Digest = digest.FromString("")
	if toc.BlobSize == 0 {
		toc.BlobSize, toc.raw = payload+1, []byte{0}
	}
	if err := writeIndex(&w, toc); err != nil {
		t.Fatal(err)
	}
	x, err := parseIndex(w.b)
	if err != nil {
		t.Fatal(err)
	}
	for key, size := range objects {
		if o, ok := x.Find(key); !ok || o.Size() != size {
			t.Fatalf("%v is not in the index", key)
		}
	}
}

func FuzzIndex(f *testing.F) {
	for _, toc := range []string{entries(), twoChunks(3, 3, 0)} {
		t, err := ReadTOC(context.Background(), &memory{b: blobWith(f, toc)}, "")
		if err != nil {
			f.Fatal(err)
		}
		var w writerAt
		if err := writeIndex(&w, t); err != nil {
			f.Fatal(err)
		}
		f.Add(w.b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		reseal(b)
		x, err := parseIndex(b)
		if err != nil {
			return
		}
		for o := range x.All() {
			found, ok := x.Find(o.Key())
			if !ok || found.Key() != o.Key() {
				t.Fatalf("%v is not found", o.Key())
			}
			if k, ok := x.FindID(o.Key().ID()); !ok || k.ID() != o.Key().ID() {
				t.Fatalf("%v is not found by ID", o.Key())
			}
			for _, c := range o.Object().Chunks {
				if o.Chunk(o.ChunkAt(c.Offset)) != c || o.Chunk(o.ChunkAt(c.Offset+c.Size-1)) != c {
					t.Fatalf("%v is not where it is", c)
				}
			}
		}
	})
}

// FuzzReadChunk: bytes that are not the chunk's are never taken for it, and no
// more is read than the stream has.
func FuzzReadChunk(f *testing.F) {
	plain := contents(1, 300)
	for _, inner := range []uint16{0, 100} {
		f.Add(gzipped(f, plain), false, inner, uint16(200))
		f.Add(zstded(f, plain), true, inner, uint16(200))
		f.Add(zstded(f, plain, zstd.WithEncoderLevel(zstd.SpeedBestCompression)), true, inner, uint16(200))
	}
	layers := map[bool]*Layer{false: {format: Gzip}, true: {format: Zstd}} // their readers are used again, whatever went before
	f.Fuzz(func(t *testing.T, blob []byte, isZstd bool, inner, size uint16) {
		l := layers[isZstd]
		l.src = &memory{b: blob}
		c := Chunk{Size: int64(size), InnerOffset: int64(inner), BlobSize: int64(len(blob)), Digest: [32]byte{1}}
		buf := make([]byte, size)
		err := l.ReadChunk(context.Background(), c, buf)
		if !errors.Is(err, ErrChunk) {
			t.Fatalf("got %v", err)
		}
		if !errors.Is(err, ErrChunkDigest) {
			return
		}
		// It decompresses to something: then that is the chunk with its digest.
		c.Digest = sha256.Sum256(buf)
		again := make([]byte, size)
		if err := l.ReadChunk(context.Background(), c, again); err != nil || !bytes.Equal(again, buf) {
			t.Fatalf("read again: %v", err)
		}
	})
}
