package objects

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
)

// TestPrefetchChunk fetches an object's chunks one by one, each once, in the
// background.
func TestPrefetchChunk(t *testing.T) {
	src := newSource()
	k, small := src.add(1_050_000, 100_000), src.add(1000, 100_000)
	l := newLoader(t, src)
	prefetch := func(k cache.Key, i int) {
		t.Helper()
		if kept, err := l.PrefetchChunk(t.Context(), k, i); err != nil || !kept {
			t.Errorf("chunk %d: kept %v, %v", i, kept, err)
		}
	}
	for _, i := range []int{10, 3, 3, 0, 1, 2, 4, 5, 6, 7, 8} {
		prefetch(k, i)
	}
	if l.cache.Has(k) {
		t.Error("complete without chunk 9")
	}
	prefetch(k, 9)
	prefetch(k, 9)
	prefetch(small, 0)
	prefetch(small, 0)
	if !l.cache.Has(k) || !l.cache.Has(small) {
		t.Error("all chunks are here, and the objects are not complete")
	}
	mustFetchOnce(t, src)
	for _, c := range src.calls() {
		if c.raised == nil {
			t.Errorf("chunk %d was asked for as if somebody waited", c.chunk)
		}
	}
	if _, err := l.PrefetchChunk(t.Context(), cache.Key{1}, 0); !errors.Is(err, ErrNoObject) {
		t.Errorf("an object that no layer holds: %v", err)
	}
}

// TestPrefetchChunkNotKept: a cache that takes nothing is told of.
func TestPrefetchChunkNotKept(t *testing.T) {
	src := newSource()
	k, small := src.add(300_000, 100_000), src.add(1000, 100_000)
	l := newLoader(t, src)
	for _, dir := range []string{"partial", "tmp"} {
		if err := os.RemoveAll(filepath.Join(filepath.Dir(l.cache.Dir()), dir)); err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range []cache.Key{k, small} {
		if kept, err := l.PrefetchChunk(t.Context(), k, 0); err != nil || kept {
			t.Errorf("kept %v, %v", kept, err)
		}
	}
}
