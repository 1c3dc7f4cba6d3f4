package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/objects"
	"github.com/ipfs-stargz/ipfs-stargz/image/estargz"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
)

// asked is blocks in memory that notes what was asked for: each Get is a round
// trip.
type asked struct {
	*blockstest.Memory
	mu    sync.Mutex
	wants []ipfs.Want
}

func (a *asked) Get(ctx context.Context, w ipfs.Want, fn func(cid.Cid, []byte) error) error {
	a.mu.Lock()
	a.wants = append(a.wants, w)
	a.mu.Unlock()
	return a.Memory.Get(ctx, w, fn)
}

func (a *asked) take() (wants []ipfs.Want) {
	a.mu.Lock()
	defer a.mu.Unlock()
	wants, a.wants = a.wants, nil
	return wants
}

// contents is one layer, for a loader.
type contents struct {
	*layer.Index
	data *layer.Layer
}

func (c contents) Find(k cache.Key) (layer.Object, bool, bool) {
	o, ok := c.Index.Find(k)
	if !ok {
		return layer.Object{}, false, false
	}
	return o.Object(), true, true
}

func (c contents) ReadChunk(ctx context.Context, o layer.Object, i int, room func() []byte) error {
	return c.data.ReadChunkInto(ctx, o.Chunks[i], room)
}

// pushed makes a layer of files as push does, and returns its root.
func pushed(t *testing.T, to *blockstest.Memory, files ...[]byte) string {
	t.Helper()
	var plain, blob bytes.Buffer
	w := tar.NewWriter(&plain)
	for i, f := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint(i), Mode: 0o644, Size: int64(len(f))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	src := io.NewSectionReader(bytes.NewReader(plain.Bytes()), 0, int64(plain.Len()))
	if _, err := estargz.Convert(t.Context(), &blob, src, estargz.Options{}); err != nil {
		t.Fatal(err)
	}
	cuts, err := estargz.Cuts(t.Context(), inMemory(blob.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	root, _, err := importer.Layer(t.Context(), &blob, cuts, importer.DefaultLeafSizes(), to.Put)
	if err != nil {
		t.Fatal(err)
	}
	return root.String()
}

type inMemory []byte

func (m inMemory) Size() int64 { return int64(len(m)) }

func (m inMemory) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return bytes.NewReader(m).ReadAt(p, off)
}

func random(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// TestRoundTrips counts what files cost that are read for the first time, with
// the layer's leaf table on disk: each wait is one Get, of the leaves that are
// needed and no others. What is prefetched is asked for in bulk.
func TestRoundTrips(t *testing.T) {
	files := [][]byte{random(1, 20_000), random(2, 30_000), random(3, 3<<20), random(4, 50_000)}
	blocks := &asked{Memory: blockstest.NewMemory()}
	root := pushed(t, blocks.Memory, files...)
	open := opener(blocks, t.TempDir())
	src, err := open(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	toc, err := layer.ReadTOC(t.Context(), src, "")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := layer.Save(dir, toc); err != nil {
		t.Fatal(err)
	}
	index, err := layer.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer index.Close()
	c, err := cache.Open(cache.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	blocks.take()

	// From here on as after a start.
	if src, err = open(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	if w := blocks.take(); len(w) != 0 {
		t.Errorf("to open the layer again takes %d round trips", len(w))
	}
	l := objects.NewLoader(contents{index, layer.Open(index, src)}, c)
	defer l.Close()
	object := func(i int) layer.Object {
		at := slices.IndexFunc(toc.Objects, func(o layer.Object) bool { return o.Size == int64(len(files[i])) })
		return toc.Objects[at]
	}
	if complete, err := l.Load(t.Context(), object(0).Key); err != nil || !complete {
		t.Fatalf("complete: %v, %v", complete, err)
	}
	if w := blocks.take(); len(w) != 1 || len(w[0].CIDs) != 1 || w[0].Bulk {
		t.Errorf("a small file: %v, want one Get of one leaf that is waited for", w)
	}
	got := make([]byte, 100_000)
	if n, err := l.ReadAt(t.Context(), object(2).Key, got, 1<<20+5); err != nil || !bytes.Equal(got[:n], files[2][1<<20+5:][:100_000]) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if w := blocks.take(); len(w) != 1 || w[0].Bulk {
		t.Errorf("a part of a large file: %v, want one Get that is waited for", w)
	}
	if kept, err := l.PrefetchChunk(t.Context(), object(3).Key, 0); err != nil || !kept {
		t.Fatalf("kept: %v, %v", kept, err)
	}
	if w := blocks.take(); len(w) != 1 || !w[0].Bulk || w[0].Raised == nil {
		t.Errorf("prefetched: %v, want one Get in bulk that can be raised", w)
	}
}
