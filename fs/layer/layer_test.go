package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	digest "github.com/opencontainers/go-digest"
)

// layers are the sample in every form that the stock library writes.
func layers(t testing.TB) map[string][]byte {
	return map[string][]byte{
		"gzip":              gzipLayer(t, sample()),
		"gzip, small chunk": gzipLayer(t, sample(), estargz.WithChunkSize(4096)),
		"gzip, parallel":    gzipLayer(t, sample(), estargz.WithChunkSize(50_000), estargz.WithParallelism(4)),
		"gzip, prioritized": gzipLayer(t, sample(), estargz.WithPrioritizedFiles([]string{"data/8-300001", "usr/bin/sudo"})),
		"gzip, shared":      gzipLayer(t, sample(), estargz.WithChunkSize(60_000), estargz.WithMinChunkSize(200_000)),
		"zstd":              zstdLayer(t, sample()),
		"zstd, small chunk": zstdLayer(t, sample(), estargz.WithChunkSize(4096)),
		"zstd, shared":      zstdLayer(t, sample(), estargz.WithChunkSize(60_000), estargz.WithMinChunkSize(200_000)),
	}
}

func TestEveryFileReadsBack(t *testing.T) {
	want := map[string][]byte{}
	for _, f := range sample() {
		if len(f.contents) > 0 {
			want[strings.TrimPrefix(path.Clean("/"+f.Name), "/")] = f.contents
		}
	}
	for name, blob := range layers(t) {
		t.Run(name, func(t *testing.T) {
			checkContents(t, blob, want)
		})
	}
}

// checkContents reads the files of a layer whole and at random ranges.
func checkContents(t *testing.T, blob []byte, want map[string][]byte) {
	t.Helper()
	ctx := context.Background()
	src := &memory{b: blob}
	toc, err := ReadTOC(ctx, src, "")
	if err != nil {
		t.Fatal(err)
	}
	if n := src.reads.Load(); n > 2 {
		t.Errorf("ReadTOC read %d times", n)
	}
	x := indexOf(t, toc)
	l := Open(x, src)
	seen := 0
	for _, e := range toc.Entries {
		if e.Type != Reg || e.Size == 0 {
			continue
		}
		seen++
		contents, ok := want[e.Name]
		if !ok {
			t.Errorf("unexpected file %q", e.Name)
			continue
		}
		o, ok := x.Find(e.Key)
		if !ok || o.Size() != int64(len(contents)) {
			t.Fatalf("%s: not in the index, or with another size", e.Name)
		}
		if got := readObject(t, l, src, o); !bytes.Equal(got, contents) {
			t.Errorf("%s: other contents", e.Name)
		}
		for range 20 {
			off := rand.Int64N(o.Size())
			c := o.Chunk(o.ChunkAt(off))
			if off < c.Offset || off >= c.Offset+c.Size {
				t.Fatalf("%s: byte %d is not in %v", e.Name, off, c)
			}
			buf := make([]byte, c.Size)
			if err := l.ReadChunk(ctx, c, buf); err != nil {
				t.Fatalf("%s: %v", e.Name, err)
			}
			if !bytes.Equal(buf[off-c.Offset:], contents[off:c.Offset+c.Size]) {
				t.Errorf("%s: other contents at %d", e.Name, off)
			}
		}
	}
	if seen != len(want) {
		t.Errorf("%d files, want %d", seen, len(want))
	}
}

func readObject(t *testing.T, l *Layer, src *memory, o ObjectView) []byte {
	t.Helper()
	b := make([]byte, o.Size())
	for _, c := range o.Object().Chunks {
		before := src.reads.Load()
		if err := l.ReadChunk(context.Background(), c, b[c.Offset:c.Offset+c.Size]); err != nil {
			t.Fatal(err)
		}
		if n := src.reads.Load() - before; n != 1 {
			t.Errorf("%v took %d reads", c, n)
		}
	}
	return b
}

// TestAgainstStock compares what ReadTOC says with what the stock reader does.
func TestAgainstStock(t *testing.T) {
	for name, blob := range layers(t) {
		if strings.HasPrefix(name, "zstd") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			src := &memory{b: blob}
			stock, err := estargz.Open(sectionOf(blob))
			if err != nil {
				t.Fatal(err)
			}
			toc, err := ReadTOC(context.Background(), src, stock.TOCDigest())
			if err != nil {
				t.Fatal(err)
			}
			objects := map[Key]Object{}
			for _, o := range toc.Objects {
				objects[o.Key] = o
			}
			for _, e := range toc.Entries {
				s, ok := stock.Lookup(e.Name)
				if !ok {
					t.Fatalf("%q is unknown to the stock reader", e.Name)
				}
				if e.Type == Hardlink {
					continue
				}
				if int64(e.Mode) != s.Mode&0o7777 || int(e.UID) != s.UID || int(e.GID) != s.GID || e.Size != s.Size {
					t.Errorf("%q: %+v, stock %+v", e.Name, e, s)
				}
				if !s.ModTime().IsZero() && !s.ModTime().Equal(e.ModTime) {
					t.Errorf("%q: modification time %v, stock %v", e.Name, e.ModTime, s.ModTime())
				}
				for _, c := range objects[e.Key].Chunks {
					sc, ok := stock.ChunkEntryForOffset(e.Name, c.Offset)
					if !ok || sc.ChunkSize != c.Size || digest.NewDigestFromBytes(digest.SHA256, c.Digest[:]).String() != sc.ChunkDigest {
						t.Errorf("%q: chunk %v, stock %+v", e.Name, c, sc)
						continue
					}
					next := sc.NextOffset()
					if next == int64(len(blob)) {
						next = toc.footer.payloadEnd // the stock reader has the last chunk reach over the TOC
					}
					// Files of the same contents are one object, read at the first one's place.
					if e.Name != "same/2" && (sc.Offset != c.BlobOffset || sc.InnerOffset != c.InnerOffset || next != c.BlobOffset+c.BlobSize) {
						t.Errorf("%q: chunk at %d+%d to %d, stock %d+%d to %d", e.Name, c.BlobOffset, c.InnerOffset,
							c.BlobOffset+c.BlobSize, sc.Offset, sc.InnerOffset, next)
					}
				}
			}
		})
	}
}

func TestPrefetchSize(t *testing.T) {
	ctx := context.Background()
	for name, prioritized := range map[string][]string{"none": nil, "one": {"data/8-300001"}} {
		toc, err := ReadTOC(ctx, &memory{b: gzipLayer(t, sample(), estargz.WithPrioritizedFiles(prioritized))}, "")
		if err != nil {
			t.Fatal(err)
		}
		if (toc.PrefetchSize > 0) != (prioritized != nil) {
			t.Errorf("%s: prefetch size %d", name, toc.PrefetchSize)
		}
		for _, e := range toc.Entries {
			if isLandmark(e.Name) {
				t.Errorf("%s: landmark %s is an entry", name, e.Name)
			}
		}
		if prioritized != nil {
			o := toc.Objects[0]
			if last := o.Chunks[len(o.Chunks)-1]; o.Size != 300001 || last.BlobOffset+last.BlobSize > toc.PrefetchSize {
				t.Errorf("%s: the prioritized file is not first", name)
			}
		}
	}
}

// TestContainersStorage reads what skopeo 1.9 (footer of 40 bytes) and
// containers/storage 1.59 (64 bytes, with tar-split data) make of one tar:
// testdata/README.md tells how.
func TestContainersStorage(t *testing.T) {
	holes := append(contents(3, 5000), append(make([]byte, 200_000), "tail"...)...)
	for _, name := range []string{"skopeo-1.9.zst", "storage-1.59.zst"} {
		t.Run(name, func(t *testing.T) {
			blob, err := os.ReadFile(filepath.Join("testdata", name))
			if err != nil {
				t.Fatal(err)
			}
			checkContents(t, blob, map[string][]byte{
				"etc/hello": []byte("hello\n"), "bin/holes": holes, "bin/text": contents(4, 3000),
			})
			toc, err := ReadTOC(context.Background(), &memory{b: blob}, "")
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range toc.Entries {
				if e.Name == "etc/hello" && (e.ModTime.Nanosecond() != 123456789 || len(e.Xattrs) != 1 || string(e.Xattrs[0].Value) != "y") {
					t.Errorf("%+v", e)
				}
				if e.Name == "bin/holes" && len(toc.Objects[1].Chunks) != 3 {
					t.Errorf("%v", toc.Objects[1])
				}
			}
		})
	}
}

// TestReadTOCReads checks that nothing is read but footer and TOC: what lies
// before them may be in other blocks.
func TestReadTOCReads(t *testing.T) {
	ctx := context.Background()
	// About what a layer of a distribution has: files of 10 KiB compressed.
	var files []file
	for i := range 300 {
		files = append(files, reg(fmt.Sprintf("usr/share/package-%d/file-%x", i%26, i*i), contents(uint64(i), 20<<10)))
	}
	for name, blob := range map[string][]byte{"gzip": gzipLayer(t, files), "zstd": zstdLayer(t, files)} {
		src := &memory{b: blob}
		toc, err := ReadTOC(ctx, src, "")
		if err != nil {
			t.Fatal(err)
		}
		if n, most := src.bytes.Load(), int64(len(toc.raw)+maxFooterBytes); src.reads.Load() != 2 || n > most {
			t.Errorf("%s: %d reads of %d bytes, want 2 of at most %d", name, src.reads.Load(), n, most)
		}
	}
	small := &memory{b: gzipLayer(t, files[:1])}
	if _, err := ReadTOC(ctx, small, ""); err != nil || small.reads.Load() != 1 {
		t.Errorf("a small layer: %d reads, %v", small.reads.Load(), err)
	}
	// A TOC far larger than the rest of the layer.
	var empty []file
	for i := range 2_000 {
		empty = append(empty, reg(digest.FromString(string(rune(i))).Encoded()[:40], nil))
	}
	src := &memory{b: gzipLayer(t, empty, estargz.WithParallelism(1))}
	toc, err := ReadTOC(ctx, src, "")
	if err != nil {
		t.Fatal(err)
	}
	if n := src.reads.Load(); n != 2 || len(toc.Entries) != len(empty) {
		t.Errorf("%d reads, %d entries", n, len(toc.Entries))
	}
}

func TestWrongDigest(t *testing.T) {
	src := &memory{b: gzipLayer(t, sample())}
	toc, err := ReadTOC(context.Background(), src, "")
	if err != nil {
		t.Fatal(err)
	}
	other := digest.FromString("other")
	_, err = ReadTOC(context.Background(), src, other)
	if !errors.Is(err, ErrTOCDigest) || !strings.Contains(err.Error(), other.String()) || !strings.Contains(err.Error(), toc.Digest.String()) {
		t.Errorf("got %v", err)
	}
	for _, bad := range []digest.Digest{"x", "sha256:12", digest.SHA512.FromString("x")} {
		if _, err := ReadTOC(context.Background(), src, bad); !errors.Is(err, ErrTOCDigest) {
			t.Errorf("%s: got %v", bad, err)
		}
	}
}

func TestSourceErrors(t *testing.T) {
	blob := gzipLayer(t, sample())
	toc, err := ReadTOC(context.Background(), &memory{b: blob}, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := ReadTOC(ctx, &memory{b: blob}, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("ReadTOC: got %v", err)
	}
	l := Open(indexOf(t, toc), &memory{b: blob})
	c := toc.Objects[0].Chunks[0]
	err = l.ReadChunk(ctx, c, make([]byte, c.Size))
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrChunk) {
		t.Errorf("ReadChunk: got %v", err)
	}
	// A source that ends too early is not the layer's fault either.
	if _, err := ReadTOC(context.Background(), short{&memory{b: blob}}, ""); err == nil || errors.Is(err, ErrNotStargz) {
		t.Errorf("short source: got %v", err)
	}
}

// short claims one byte more than it has.
type short struct{ *memory }

func (s short) Size() int64 { return s.memory.Size() + 1 }
