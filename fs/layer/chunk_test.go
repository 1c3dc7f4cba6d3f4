package layer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"sync"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/zstd"
)

// oneChunk is a layer of nothing but one compressed stream, and its chunk.
func oneChunk(format Format, compressed, plain []byte) (*Layer, Chunk, *memory) {
	src := &memory{b: compressed}
	return &Layer{src: src, format: format}, Chunk{
		Size: int64(len(plain)), BlobSize: int64(len(compressed)), Digest: sha256.Sum256(plain),
	}, src
}

func zstded(t testing.TB, b []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	zw, err := zstd.NewWriter(nil, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer zw.Close()
	return zw.EncodeAll(b, nil)
}

func TestReadChunkDamaged(t *testing.T) {
	ctx := context.Background()
	plain := contents(1, 50_000)
	for format, compressed := range map[Format][]byte{Gzip: gzipped(t, plain), Zstd: zstded(t, plain)} {
		l, c, src := oneChunk(format, compressed, plain)
		buf := make([]byte, len(plain))
		if err := l.ReadChunk(ctx, c, buf); err != nil || !bytes.Equal(buf, plain) {
			t.Fatalf("%v: got %v", format, err)
		}
		// One bit anywhere in the payload is found, and no byte can do worse.
		for at := 0; at < len(compressed)-12; at += 1 + at/50 {
			src.b = bytes.Clone(compressed)
			src.b[at] ^= 1 << (at % 8)
			err := l.ReadChunk(ctx, c, buf)
			if err == nil && !bytes.Equal(buf, plain) {
				t.Errorf("%v: other bytes after damage at %d", format, at)
			}
			if err != nil && !errors.Is(err, ErrChunk) {
				t.Errorf("%v: damage at %d: %v", format, at, err)
			}
		}
		src.b = compressed
		for name, c := range map[string]Chunk{
			"digest":         {Size: c.Size, BlobSize: c.BlobSize},
			"shorter stream": {Size: c.Size, BlobSize: c.BlobSize / 2, Digest: c.Digest},
			"longer chunk":   {Size: c.Size + 1, BlobSize: c.BlobSize, Digest: c.Digest},
			"inner offset":   {Size: c.Size, BlobSize: c.BlobSize, InnerOffset: 1, Digest: c.Digest},
			"past the blob":  {Size: c.Size, BlobSize: c.BlobSize + 1, Digest: c.Digest},
			"before it":      {Size: c.Size, BlobOffset: -1, BlobSize: c.BlobSize, Digest: c.Digest},
			"overflow":       {Size: c.Size, BlobOffset: 1<<63 - 1, BlobSize: 1<<63 - 1, Digest: c.Digest},
			"too large":      {Size: MaxChunkBytes + 1, BlobSize: c.BlobSize, Digest: c.Digest},
			"no stream":      {Size: c.Size, Digest: c.Digest},
		} {
			err := l.ReadChunk(ctx, c, make([]byte, c.Size))
			if !errors.Is(err, ErrChunk) || errors.Is(err, ErrChunkDigest) != (name == "digest") {
				t.Errorf("%v: %s: got %v", format, name, err)
			}
		}
		if err := l.ReadChunk(ctx, c, buf[:10]); err == nil || errors.Is(err, ErrChunk) {
			t.Errorf("%v: short buffer: got %v", format, err)
		}
		// Whatever failed before, the pooled readers still work.
		if err := l.ReadChunk(ctx, c, buf); err != nil || !bytes.Equal(buf, plain) {
			t.Errorf("%v: after failures: %v", format, err)
		}
	}
}

// TestReadChunkBomb reads a chunk of a stream that goes on for much longer:
// neither what follows is fetched, nor decompressed.
func TestReadChunkBomb(t *testing.T) {
	bomb := make([]byte, 20<<20)
	plain := bomb[:1000]
	// A frame of a single segment has no window, but says that it has 1 GiB
	// and would have a decoder make room for that (RFC 8878, section 3.1.1.1).
	big := binary.LittleEndian.AppendUint64([]byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0}, 1<<30)
	big = append(big, 2|(100<<10&0xf8), 100<<10>>8&0xff, 100<<10>>16, 0) // 100 KiB of zeros, and more to follow
	for name, c := range map[string]struct {
		format     Format
		compressed []byte
		err        error
	}{
		"gzip":                 {Gzip, gzipped(t, bomb), nil},
		"zstd":                 {Zstd, zstded(t, bomb, zstd.WithEncoderLevel(zstd.SpeedBestCompression)), nil},
		"zstd, single segment": {Zstd, big, ErrChunk},
	} {
		t.Run(name, func(t *testing.T) {
			l, chunk, src := oneChunk(c.format, append(c.compressed, make([]byte, 10<<20)...), plain)
			buf := make([]byte, len(plain))
			if err := l.ReadChunk(context.Background(), chunk, buf); !errors.Is(err, c.err) || c.err == nil && err != nil {
				t.Fatalf("got %v", err)
			}
			if n := src.bytes.Load(); n > 8<<10 {
				t.Errorf("%d bytes were fetched for 1000", n)
			}
			if r, _ := l.readers.Get().(*chunkReader); r != nil && r.in.lent != nil {
				t.Error("a buffer is kept")
			}
		})
	}
}

// TestReadChunkSteps has a stream that is larger than the chunk's size lets
// expect.
func TestReadChunkSteps(t *testing.T) {
	compressed := bytes.Repeat(gzipped(t, nil), 30_000)
	plain := []byte("hello")
	compressed = append(compressed, gzipped(t, plain)...)
	l, c, src := oneChunk(Gzip, compressed, plain)
	buf := make([]byte, len(plain))
	if err := l.ReadChunk(context.Background(), c, buf); err != nil || !bytes.Equal(buf, plain) {
		t.Fatal(err)
	}
	if n := src.reads.Load(); n != 4 {
		t.Errorf("%d reads of %d bytes", n, len(compressed))
	}
}

// TestZstdWindow: encoders declare a window of up to 32 MiB for a file of a
// few bytes, which must not be what a decoder allocates.
func TestZstdWindow(t *testing.T) {
	var b bytes.Buffer
	zw, err := zstd.NewWriter(&b, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(32<<20))
	if err != nil {
		t.Fatal(err)
	}
	plain := contents(1, 300_000)
	if _, err := zw.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	var h zstd.Header
	if err := h.Decode(b.Bytes()); err != nil || h.WindowSize != 32<<20 {
		t.Fatalf("the test's frame has a window of %d, %v", h.WindowSize, err)
	}
	shrunk := bytes.Clone(b.Bytes())
	shrinkZstdWindow(shrunk, int64(len(plain)))
	if err := h.Decode(shrunk); err != nil || h.WindowSize != 512<<10 {
		t.Errorf("shrunk to %d, %v", h.WindowSize, err)
	}
	l, c, _ := oneChunk(Zstd, b.Bytes(), plain)
	if err := l.ReadChunk(context.Background(), c, make([]byte, len(plain))); err != nil {
		t.Error(err)
	}
	for _, small := range [][]byte{nil, shrunk[:5], []byte("no frame at all")} {
		before := bytes.Clone(small)
		if shrinkZstdWindow(small, 1); !bytes.Equal(small, before) {
			t.Errorf("%x was changed", before)
		}
	}
}

func TestReadChunkParallel(t *testing.T) {
	for name, blob := range map[string][]byte{
		"gzip": gzipLayer(t, sample(), estargz.WithChunkSize(20_000)),
		"zstd": zstdLayer(t, sample(), estargz.WithChunkSize(20_000)),
	} {
		t.Run(name, func(t *testing.T) {
			src := &memory{b: blob}
			toc, err := ReadTOC(context.Background(), src, "")
			if err != nil {
				t.Fatal(err)
			}
			l := Open(indexOf(t, toc), src)
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for _, o := range toc.Objects {
						for _, c := range o.Chunks {
							if err := l.ReadChunk(context.Background(), c, make([]byte, c.Size)); err != nil {
								t.Error(err)
							}
						}
					}
				})
			}
			wg.Wait()
		})
	}
}
