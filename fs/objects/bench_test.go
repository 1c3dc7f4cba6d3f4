package objects

import (
	"bytes"
	"compress/flate"
	"context"
	"crypto/sha256"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// benchLayer is a source whose chunks are gzip members in memory: what a layer's
// blocks are once they are here.
type benchLayer struct {
	obj  layer.Object
	blob []byte
}

func (b *benchLayer) Find(k cache.Key) (layer.Object, bool, bool) { return b.obj, true, k == b.obj.Key }

func (b *benchLayer) FindID(id uint64) (cache.Key, bool) { return b.obj.Key, id == b.obj.Key.ID() }

func (b *benchLayer) ReadChunk(_ context.Context, o layer.Object, i int, room func() []byte) error {
	c := o.Chunks[i]
	// The leaf is verified, then decompressed, and the chunk verified: as in
	// packages ipfs and layer.
	member := b.blob[c.BlobOffset:][:c.BlobSize]
	sha256.Sum256(member)
	r, err := gzip.NewReader(bytes.NewReader(member))
	if err != nil {
		return err
	}
	dst := room()
	if _, err := io.ReadFull(r, dst); err != nil {
		return err
	}
	if sha256.Sum256(dst) != c.Digest {
		return layer.ErrChunk
	}
	return nil
}

// newBenchLayer makes an object of that many chunks of 1 MiB.
func newBenchLayer(b *testing.B, chunks, level int) *benchLayer {
	b.Helper()
	const chunk = 1 << 20
	s := &benchLayer{}
	data := make([]byte, chunk)
	sum := sha256.New()
	var blob bytes.Buffer
	for i := range chunks {
		src := newSource()
		copy(data, src.data[src.add(chunk, chunk)])
		data[0], data[1] = byte(i), byte(i>>8)
		at := blob.Len()
		w, err := gzip.NewWriterLevel(&blob, level)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			b.Fatal(err)
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
		c := layer.Chunk{
			Offset: int64(i) * chunk, Size: chunk, Digest: sha256.Sum256(data),
			BlobOffset: int64(at), BlobSize: int64(blob.Len() - at),
		}
		sum.Write(c.Digest[:])
		s.obj.Chunks = append(s.obj.Chunks, c)
	}
	s.obj.Size, s.obj.Key, s.blob = int64(chunks)*chunk, cache.Key(sum.Sum(nil)), blob.Bytes()
	return s
}

// reportCPU returns a function that reports the processor time that was used
// since, in seconds a GB of what each iteration reads.
func reportCPU(b *testing.B, size int64) func() {
	used := func() float64 {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
	}
	before := used()
	return func() { b.ReportMetric((used()-before)/(float64(size)*float64(b.N))*1e9, "cpu-s/GB") }
}

// BenchmarkCold reads a large file for the first time, in order. source is the
// chunks alone, decompressed and verified, two at a time: the rest cannot be
// quicker than that. Their processor time can be compared on a busy machine, too.
func BenchmarkCold(b *testing.B) {
	const chunks = 192
	s := newBenchLayer(b, chunks, flate.NoCompression)
	buf := make([]byte, 1<<20)
	b.Run("source", func(b *testing.B) {
		b.SetBytes(s.obj.Size)
		defer reportCPU(b, s.obj.Size)()
		for b.Loop() {
			done := make(chan error, 2)
			for half := range 2 {
				go func() {
					dst := make([]byte, 1<<20)
					for i := half; i < chunks; i += 2 {
						if err := s.ReadChunk(context.Background(), s.obj, i, func() []byte { return dst }); err != nil {
							done <- err
							return
						}
					}
					done <- nil
				}()
			}
			for range 2 {
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	// Of what prepare returns the first is timed.
	cold := func(b *testing.B, prepare func(l *Loader, dir string) (read, end func())) {
		b.SetBytes(s.obj.Size)
		b.ReportAllocs()
		defer reportCPU(b, s.obj.Size)()
		for b.Loop() {
			b.StopTimer()
			root := b.TempDir()
			c, err := cache.Open(cache.Options{Dir: filepath.Join(root, "cache")})
			if err != nil {
				b.Fatal(err)
			}
			l := NewLoader(s, c)
			read, end := prepare(l, root)
			b.StartTimer()
			read()
			b.StopTimer()
			end()
			l.Close()
			if err := os.RemoveAll(root); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	}
	b.Run("loader", func(b *testing.B) {
		cold(b, func(l *Loader, _ string) (read, end func()) {
			return func() {
				for off := int64(0); off < s.obj.Size; off += int64(len(buf)) {
					lent, err := l.Read(context.Background(), s.obj.Key, buf, off)
					if err != nil {
						b.Fatal(err)
					}
					lent.Release()
				}
			}, func() {}
		})
	})
	b.Run("fuse", func(b *testing.B) {
		cold(b, func(l *Loader, root string) (read, end func()) {
			dir := filepath.Join(root, "m")
			if err := os.Mkdir(dir, 0o700); err != nil {
				b.Fatal(err)
			}
			srv, err := Mount(Config{Dir: dir, Log: slog.New(slog.DiscardHandler)}, l)
			if err != nil {
				b.Fatal(err)
			}
			return func() {
					f, err := os.Open(filepath.Join(dir, s.obj.Key.String()))
					if err != nil {
						b.Fatal(err)
					}
					defer f.Close()
					for err == nil {
						_, err = f.Read(buf)
					}
					if err != io.EOF {
						b.Fatal(err)
					}
				}, func() {
					if err := srv.Close(); err != nil {
						b.Fatal(err)
					}
				}
		})
	})
}
