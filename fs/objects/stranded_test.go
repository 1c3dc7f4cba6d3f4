package objects

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
)

// TestRoomAgain checks that what the cache had no room for, and is kept in
// memory meanwhile, gets into the cache when there is room, without being
// fetched again.
func TestRoomAgain(t *testing.T) {
	for what, again := range map[string]func(l *Loader, k cache.Key) (bool, error){
		"read": func(l *Loader, k cache.Key) (bool, error) {
			_, err := l.ReadAt(t.Context(), k, make([]byte, 250_000), 0)
			return l.cache.Has(k), err
		},
		"looked up": func(l *Loader, k cache.Key) (bool, error) { return l.Load(t.Context(), k) },
		"prefetched": func(l *Loader, k cache.Key) (bool, error) {
			all := true
			for i := range 3 {
				kept, err := l.PrefetchChunk(t.Context(), k, i)
				if err != nil {
					return false, err
				}
				all = all && kept
			}
			return all, nil
		},
	} {
		for _, chunk := range []int64{100_000, 300_000} {
			if what == "prefetched" && chunk == 300_000 {
				continue // it has one chunk, and not three
			}
			t.Run(fmt.Sprintf("%s in chunks of %d", what, chunk), func(t *testing.T) {
				t.Parallel()
				roomAgain(t, chunk, again)
			})
		}
	}
}

func roomAgain(t *testing.T, chunk int64, again func(l *Loader, k cache.Key) (kept bool, err error)) {
	src := newSource()
	k := src.add(250_000, chunk)
	l := newLoader(t, src)
	give := takeRoom(t, l.cache)
	mustRead(t, l, src, k, 0, 250_000)
	if complete, err := l.Load(t.Context(), k); err != nil || complete {
		t.Fatalf("complete without room: %v, %v", complete, err)
	}
	give()
	eventually(t, "it is kept", func() bool {
		kept, err := again(l, k)
		if err != nil {
			t.Fatal(err)
		}
		return kept
	})
	mustRead(t, l, src, k, 0, 250_000)
	mustFetchOnce(t, src)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.stranded) > 0 || l.strandedBytes != 0 {
		t.Errorf("%d chunks, %d bytes, are still kept in memory", len(l.stranded), l.strandedBytes)
	}
}

// takeRoom leaves a cache no place for anything until it is given back.
func takeRoom(t *testing.T, c *cache.Cache) (give func()) {
	t.Helper()
	var dirs []string
	for _, dir := range []string{"partial", "tmp"} {
		dir = filepath.Join(filepath.Dir(c.Dir()), dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	return func() {
		for _, dir := range dirs {
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
}
