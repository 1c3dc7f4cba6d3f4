package objects

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
)

// counter is a [Live] object that counts how often it is read.
type counter struct {
	key cache.Key

	mu   sync.Mutex
	n    int
	gone bool
}

func (c *counter) Size(k cache.Key) (int64, bool) { return 8, k == c.key }

func (c *counter) FindID(id uint64) (cache.Key, bool) { return c.key, id == c.key.ID() }

func (c *counter) Contents(context.Context, cache.Key) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return nil, ErrNoObject
	}
	c.n++
	return fmt.Appendf(nil, "%7d\n", c.n), nil
}

// TestLive checks that what is live is never read from memory, nor kept.
func TestLive(t *testing.T) {
	src := newSource()
	other := src.add(3000, 1000)
	live := &counter{key: sha256.Sum256([]byte("live"))}
	v := newView(t, src, Config{Live: live}, 0)
	path := filepath.Join(v.server.cfg.Dir, live.key.String())
	if st, err := os.Stat(path); err != nil || st.Size() != 8 {
		t.Fatalf("%+v, %v", st, err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 8)
	for i := range 3 {
		if n, err := f.ReadAt(b, 0); string(b[:n]) != fmt.Sprintf("%7d\n", 1+i) {
			t.Errorf("%q, %v", b[:n], err)
		}
	}
	if n, _ := f.ReadAt(b[:2], 6); string(b[:n]) != "4\n" {
		t.Errorf("the end of it: %q", b[:n])
	}
	if n, _ := f.ReadAt(b, 9); n != 0 {
		t.Errorf("behind its end: %q", b[:n])
	}
	if got, err := os.ReadFile(path); err != nil || len(got) != 8 {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := os.ReadFile(v.paths[other]); err != nil || len(got) != 3000 {
		t.Errorf("another object: %d bytes, %v", len(got), err)
	}
	if v.cache.Has(live.key) {
		t.Error("it is in the cache")
	}
	src.set(func() {
		if len(src.reads) != 3 {
			t.Errorf("read: %v, want the 3 chunks of the other", src.reads)
		}
	})

	live.mu.Lock()
	live.gone = true
	live.mu.Unlock()
	if n, err := f.ReadAt(b, 0); err == nil {
		t.Errorf("what is gone: %q", b[:n])
	}
}
