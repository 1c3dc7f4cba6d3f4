package fusetree

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
)

// counter is a [Live] object that counts how often it is read.
type counter struct {
	key cache.Key
	n   atomic.Int64
}

func (c *counter) Size(k cache.Key) (int64, bool) { return 8, k == c.key }

func (c *counter) Contents(context.Context, cache.Key) ([]byte, error) {
	return fmt.Appendf(nil, "%7d\n", c.n.Add(1)), nil
}

// TestLive checks that what is live is never read from memory, and other files are.
func TestLive(t *testing.T) {
	for name, cfg := range map[string]Config{"passthrough": passthrough(), "plain": {}} {
		t.Run(name, func(t *testing.T) {
			one, empty, big := reg("live", []byte("no more than a name")), reg("empty", nil), random(1, bigSize)
			one.Size = 8
			live := &counter{key: one.Key}
			cfg.Live = live
			m := newMount(t, []file{one, empty, reg("small", []byte("small")), reg("big", big)}, cfg)
			root := m.overlay(t, m.cfg.Dir)
			want := 0
			for _, dir := range []string{m.cfg.Dir, root} {
				f, err := os.Open(filepath.Join(dir, "live"))
				if err != nil {
					t.Fatal(err)
				}
				for range 3 {
					b := make([]byte, 8)
					want++
					if n, err := f.ReadAt(b, 0); string(b[:n]) != fmt.Sprintf("%7d\n", want) {
						t.Errorf("%q, %v, want %d", b[:n], err, want)
					}
				}
				if err := f.Close(); err != nil {
					t.Error(err)
				}
				mustRead(t, filepath.Join(dir, "empty"), nil)
				mustRead(t, filepath.Join(dir, "small"), []byte("small"))
				mustRead(t, filepath.Join(dir, "big"), big)
			}
			reads := m.store.reads.Load()
			mustRead(t, m.path("small"), []byte("small"))
			if n := m.store.reads.Load() - reads; n != 0 {
				t.Errorf("what does not change was read %d times more", n)
			}
		})
	}
}
