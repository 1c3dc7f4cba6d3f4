package tree

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	erofs "github.com/erofs/go-erofs"

	ours "github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// bigLayer returns a layer of dirs directories with each files files.
func bigLayer(dirs, files int) []layer.Entry {
	out := []layer.Entry{{Name: "usr", Type: layer.Dir, Mode: 0o755}, {Name: "usr/lib", Type: layer.Dir, Mode: 0o755}}
	for i := range dirs {
		dir := fmt.Sprintf("usr/lib/dir%04d", i)
		out = append(out, layer.Entry{Name: dir, Type: layer.Dir, Mode: 0o755, ModTime: time.Unix(1700000000, 5)})
		for j := range files {
			out = append(out, layer.Entry{
				Name: fmt.Sprintf("%s/file-with-a-name-%04d.py", dir, j), Type: layer.Reg, Mode: 0o644,
				UID: 1, GID: 2, ModTime: time.Unix(1700000000, 5), Size: int64(1000 + j),
				Key: sha256.Sum256(fmt.Append(nil, i, j)),
			})
		}
	}
	return out
}

// BenchmarkBuild builds the image of 100,000 files, and the same by go-erofs.
// peak-MB is the most heap in use beyond the input.
func BenchmarkBuild(b *testing.B) {
	entries := bigLayer(1000, 100)
	quarter := len(entries) / 4
	layers := [][]layer.Entry{entries[:quarter], entries[quarter : 2*quarter], entries[2*quarter : 3*quarter], entries[3*quarter:]}
	source := newEntryFS(entries)
	run := func(b *testing.B, build func(f *os.File) error) {
		var peak uint64
		for b.Loop() {
			f, err := os.Create(filepath.Join(b.TempDir(), "image"))
			if err != nil {
				b.Fatal(err)
			}
			stop := watchHeap(&peak)
			if err := build(f); err != nil {
				b.Fatal(err)
			}
			stop()
			fi, err := f.Stat()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(fi.Size())/1e6, "image-MB")
			if err := f.Close(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(peak)/1e6, "peak-MB")
		b.ReportAllocs()
	}
	b.Run("tree", func(b *testing.B) {
		run(b, func(f *os.File) error {
			_, err := Build(context.Background(), f, layers, Options{})
			return err
		})
	})
	b.Run("go-erofs", func(b *testing.B) {
		run(b, func(f *os.File) error {
			w := erofs.Create(f, erofs.WithBuildTime(0, 0))
			if err := w.CopyFrom(source, erofs.MetadataOnly()); err != nil {
				return err
			}
			return w.Close()
		})
	})
}

// watchHeap records the most heap in use beyond what is in use now, until stop
// is called.
func watchHeap(peak *uint64) (stop func()) {
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			if now.HeapAlloc > before.HeapAlloc {
				*peak = max(*peak, now.HeapAlloc-before.HeapAlloc)
			}
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-stopped }
}

// entryFS presents a layer's entries to go-erofs.
type entryFS map[string]*entryNode

type entryNode struct {
	*layer.Entry
	kids []fs.DirEntry
}

func newEntryFS(entries []layer.Entry) entryFS {
	f := entryFS{}
	var add func(e *layer.Entry) *entryNode
	add = func(e *layer.Entry) *entryNode {
		n := &entryNode{Entry: e}
		f[e.Name] = n
		if e.Name == "." {
			return n
		}
		dir := path.Dir(e.Name)
		parent := f[dir]
		if parent == nil {
			parent = add(&layer.Entry{Name: dir, Type: layer.Dir, Mode: 0o755})
		}
		parent.kids = append(parent.kids, n)
		return n
	}
	for i := range entries {
		add(&entries[i])
	}
	for _, n := range f {
		slices.SortFunc(n.kids, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	}
	return f
}

func (f entryFS) Open(string) (fs.File, error)               { return nil, fs.ErrNotExist }
func (f entryFS) Stat(name string) (fs.FileInfo, error)      { return f[name], nil }
func (f entryFS) ReadDir(name string) ([]fs.DirEntry, error) { return f[name].kids, nil }
func (n *entryNode) Name() string                            { return path.Base(n.Entry.Name) }
func (n *entryNode) Size() int64                             { return n.Entry.Size }
func (n *entryNode) ModTime() time.Time                      { return n.Entry.ModTime }
func (n *entryNode) IsDir() bool                             { return n.Entry.Type == layer.Dir }
func (n *entryNode) Type() fs.FileMode                       { return n.Mode().Type() }
func (n *entryNode) Info() (fs.FileInfo, error)              { return n, nil }
func (n *entryNode) Mode() fs.FileMode {
	if n.IsDir() {
		return fs.ModeDir | fs.FileMode(n.Entry.Mode)
	}
	return fs.FileMode(n.Entry.Mode)
}

func (n *entryNode) Sys() any {
	s := &erofs.Stat{UID: n.UID, GID: n.GID, Mtime: uint64(n.Entry.ModTime.Unix()), MtimeNs: uint32(n.Entry.ModTime.Nanosecond()), Nlink: 1}
	if !n.IsDir() {
		s.Xattrs = map[string]string{ours.XattrMetacopy: "", ours.XattrRedirect: "/" + n.Key.String()}
	}
	return s
}
