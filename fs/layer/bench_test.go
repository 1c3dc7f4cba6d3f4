package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
)

// manyFiles is a layer of n files of 1 KiB.
func manyFiles(b *testing.B, n int) []byte {
	b.Helper()
	var files []file
	for i := range n {
		files = append(files, reg(fmt.Sprintf("usr/lib/python3/dist-packages/package%d/module_%d.py", i%100, i), contents(uint64(i), 1<<10)))
	}
	return gzipLayer(b, files)
}

// BenchmarkReadTOC is to be compared with BenchmarkStockTOC: all of ReadTOC
// against the decoding alone that the stock library does.
func BenchmarkReadTOC(b *testing.B) {
	src := &memory{b: manyFiles(b, 20_000)}
	toc, err := ReadTOC(context.Background(), src, "")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(len(toc.raw))/float64(len(toc.Entries)), "compressed-B/entry")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ReadTOC(context.Background(), src, toc.Digest); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLoadEntries reads the same from the disk, for a tree.
func BenchmarkLoadEntries(b *testing.B) {
	toc := readTOC(b, manyFiles(b, 20_000))
	dir := b.TempDir()
	if err := Save(dir, toc); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := LoadEntries(context.Background(), dir); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStockTOC(b *testing.B) {
	blob := manyFiles(b, 20_000)
	toc := readTOC(b, blob)
	b.ReportAllocs()
	for b.Loop() {
		zr, err := gzip.NewReader(bytes.NewReader(toc.raw))
		if err != nil {
			b.Fatal(err)
		}
		tr := tar.NewReader(zr)
		if _, err := tr.Next(); err != nil {
			b.Fatal(err)
		}
		var stock estargz.JTOC
		if err := json.NewDecoder(tr).Decode(&stock); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadChunk(b *testing.B) {
	for _, size := range []int{4 << 10, 256 << 10, 4 << 20} {
		for name, build := range map[string]func(testing.TB, []file, ...estargz.Option) []byte{"gzip": gzipLayer, "zstd": zstdLayer} {
			b.Run(fmt.Sprintf("%s/%dKiB", name, size>>10), func(b *testing.B) {
				src := &memory{b: build(b, []file{reg("file", contents(1, size))})}
				toc, err := ReadTOC(context.Background(), src, "")
				if err != nil {
					b.Fatal(err)
				}
				l := Open(indexOf(b, toc), src)
				c := toc.Objects[0].Chunks[0]
				buf := make([]byte, c.Size)
				b.SetBytes(c.Size)
				b.ReportAllocs()
				for b.Loop() {
					if err := l.ReadChunk(context.Background(), c, buf); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkFind(b *testing.B) {
	toc, err := ReadTOC(context.Background(), &memory{b: manyFiles(b, 20_000)}, "")
	if err != nil {
		b.Fatal(err)
	}
	x := indexOf(b, toc)
	i := 0
	for b.Loop() {
		if _, ok := x.Find(toc.Objects[i%len(toc.Objects)].Key); !ok {
			b.Fatal("not found")
		}
		i += 7
	}
}
