package objects

import (
	"bytes"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
)

// TestPassthrough checks that the kernel reads by itself what is complete when
// it is opened through FUSE once more: overlayfs does not know that it is.
func TestPassthrough(t *testing.T) {
	src := newSource()
	k := src.add(3_000_000, 1<<20)
	v := newView(t, src, Config{SmallSize: 1000}, 0)
	if got, err := os.ReadFile(v.paths[k]); err != nil || !bytes.Equal(got, src.data[k]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	eventually(t, "it is complete", func() bool { return v.cache.Has(k) })
	var f *os.File
	// The kernel tells of the first one's release when it finds the time.
	eventually(t, "it is passed through", func() bool {
		var err error
		if f, err = os.Open(v.paths[k]); err != nil {
			t.Fatal(err)
		}
		if v.stats().Passthrough.Load() > 0 {
			return true
		}
		f.Close()
		return false
	})
	defer f.Close()
	before := counted(&v.stats().ReadSeconds)
	got := make([]byte, len(src.data[k]))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, src.data[k]) {
		t.Errorf("passed through: %v", err)
	}
	if n := counted(&v.stats().ReadSeconds) - before; n != 0 {
		t.Errorf("%d reads met FUSE", n)
	}
	if v.server.files.Registered() != 1 {
		t.Errorf("%d files are registered", v.server.files.Registered())
	}
	f.Close()
	eventually(t, "it is released", func() bool { return v.server.files.Registered() == 0 })
}

// TestOpenedWhileCompleted has files opened, read and closed from many sides
// while they become complete: the kernel refuses to have one open in both ways.
func TestOpenedWhileCompleted(t *testing.T) {
	src := newSource()
	keys := [][32]byte{src.add(1_000_000, 50_000), src.add(1_000_001, 50_000), src.add(700_000, 100_000)}
	v := newView(t, src, Config{}, 0)
	var wg sync.WaitGroup
	for seed := range uint64(8) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, 3))
			for range 100 {
				k := keys[r.IntN(len(keys))]
				f, err := os.Open(v.paths[k])
				if err != nil {
					t.Error(err)
					return
				}
				off := r.IntN(len(src.data[k]) - 1000)
				b := make([]byte, 1000)
				if _, err := f.ReadAt(b, int64(off)); err != nil || !bytes.Equal(b, src.data[k][off:off+1000]) {
					t.Errorf("%d: %v", off, err)
				}
				f.Close()
			}
		})
	}
	wg.Wait()
	mustFetchOnce(t, src)
}
