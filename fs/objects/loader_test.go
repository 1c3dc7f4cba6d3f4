package objects

import (
	"bytes"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
)

// newCache returns a new cache. It has goroutines that wait for the kernel, so
// it is made outside of a test's bubble.
func newCache(t testing.TB) *cache.Cache {
	t.Helper()
	c, err := cache.Open(cache.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// loaderInto returns a loader of the source's objects into c.
func loaderInto(t testing.TB, c *cache.Cache, src *source) *Loader {
	l := NewLoader(src, c)
	t.Cleanup(l.Close)
	return l
}

// newLoader returns a loader of the source's objects into a new cache.
func newLoader(t testing.TB, src *source) *Loader {
	t.Helper()
	return loaderInto(t, newCache(t), src)
}

// prefetchAll prefetches all chunks of an object, some at once.
func (l *Loader) prefetchAll(ctx context.Context, k cache.Key) (complete bool, err error) {
	return l.load(ctx, k, background, 0, math.MaxInt)
}

// state returns how many wait, and when the last one got what it wanted.
func (d *demandGate) state() (active int, lastEnd time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.active, d.lastEnd
}

// eventually waits for what must come about; a minute is far more than it
// takes.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it never came about that %s", what)
		}
	}
}

func (s *source) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting
}

func (s *source) calls() []ask {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// mustRead reads a range and compares it.
func mustRead(t testing.TB, l *Loader, src *source, k cache.Key, off, n int) {
	t.Helper()
	b := make([]byte, n)
	got, err := l.ReadAt(context.Background(), k, b, int64(off))
	if want := src.data[k][min(off, len(src.data[k])):min(off+n, len(src.data[k]))]; err != nil || !bytes.Equal(b[:got], want) {
		t.Errorf("%d bytes at %d: %d other bytes, %v", n, off, got, err)
	}
}

func mustFetchOnce(t testing.TB, src *source) {
	t.Helper()
	src.mu.Lock()
	defer src.mu.Unlock()
	for chunk, n := range src.reads {
		if n != 1 {
			t.Errorf("chunk %s was fetched %d times", chunk, n)
		}
	}
}

// TestFetchedOnce has many readers, in order and at random, look-ups and a
// prefetcher want one object at a time.
func TestFetchedOnce(t *testing.T) {
	src := newSource()
	k := src.add(3_000_123, 33_000)
	l := newLoader(t, src)
	var wg sync.WaitGroup
	for seed := range uint64(32) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, 1))
			if seed%4 == 0 {
				for off := 0; off < 3_000_123; off += 150_000 {
					mustRead(t, l, src, k, off, 150_000)
				}
				return
			}
			for range 30 {
				mustRead(t, l, src, k, r.IntN(3_000_123), r.IntN(150_000))
			}
		})
	}
	for _, load := range []func(context.Context, cache.Key) (bool, error){l.prefetchAll, l.Load, l.prefetchAll} {
		wg.Go(func() {
			if complete, err := load(t.Context(), k); err != nil || !complete {
				t.Errorf("complete: %v, %v", complete, err)
			}
		})
	}
	wg.Wait()
	mustFetchOnce(t, src)
	if len(src.reads) != 91 || !l.cache.Has(k) {
		t.Errorf("%d chunks of 91 were fetched; complete: %v", len(src.reads), l.cache.Has(k))
	}
	s := l.Stats()
	if n := s.ForDemand().Chunks.Load() + s.ForReadAhead().Chunks.Load() + s.ForPrefetch().Chunks.Load(); n != 91 {
		t.Errorf("%d chunks are counted, of 91", n)
	}
	if n := s.ForDemand().Bytes.Load() + s.ForReadAhead().Bytes.Load() + s.ForPrefetch().Bytes.Load(); n != 3_000_123 {
		t.Errorf("%d bytes are counted", n)
	}
}

// TestCancelledReader checks that a reader that leaves takes the chunk from
// nobody else, and that the last one ends its fetch.
func TestCancelledReader(t *testing.T) {
	src := newSource()
	k := src.add(300_000, 100_000)
	l := newLoader(t, src)
	gate := make(chan struct{})
	src.gate = gate
	read := func(ctx context.Context) chan error {
		done := make(chan error, 1)
		go func() {
			_, err := l.ReadAt(ctx, k, make([]byte, 10), 0)
			done <- err
		}()
		return done
	}
	ctx, cancel := context.WithCancel(t.Context())
	first, second := read(ctx), read(t.Context())
	eventually(t, "both wait", func() bool { n, _ := l.gate.state(); return n == 2 && l.stats.Joined.Load() == 1 })
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the one that left: %v", err)
	}
	close(gate)
	if err := <-second; err != nil {
		t.Errorf("the other one: %v", err)
	}
	mustFetchOnce(t, src)

	src.set(func() { src.gate = make(chan struct{}) })
	ctx, cancel = context.WithCancel(t.Context())
	lonely := make(chan error, 1)
	go func() {
		_, err := l.ReadAt(ctx, k, make([]byte, 10), 250_000)
		lonely <- err
	}()
	eventually(t, "it is asked for", func() bool { return src.count() == 1 })
	cancel()
	if err := <-lonely; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	eventually(t, "the fetch ends", func() bool { return src.count() == 0 })
	if n := l.stats.Failures.Load(); n != 0 {
		t.Errorf("%d failures", n)
	}
}

// TestClose checks that who waits is told, and that what was read is in the
// cache afterwards: a reader does not wait for the disk.
func TestClose(t *testing.T) {
	src := newSource()
	k, other := src.add(3_000_000, 100_000), src.add(1000, 100_000)
	dir := t.TempDir()
	c, err := cache.Open(cache.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	l := NewLoader(src, c)
	for i := range 30 {
		mustRead(t, l, src, k, i*100_000, 1)
	}
	src.set(func() { src.gate = make(chan struct{}) })
	waiter := make(chan error, 1)
	go func() {
		_, err := l.Load(t.Context(), other)
		waiter <- err
	}()
	eventually(t, "it waits", func() bool { return src.count() == 1 })
	l.Close()
	if err := <-waiter; !errors.Is(err, ErrClosed) {
		t.Errorf("who waited got %v", err)
	}
	if _, err := l.ReadAt(t.Context(), other, make([]byte, 1), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if !c.Has(k) {
		t.Error("all chunks were read, and the object is not complete")
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// TestBrokenCache checks that all is readable, and that a reader in order has
// each chunk fetched once, where the cache can keep nothing.
func TestBrokenCache(t *testing.T) {
	src := newSource()
	k := src.add(3_000_000, 1_000_000)
	l := newLoader(t, src)
	if err := l.cache.Close(); err != nil {
		t.Fatal(err)
	}
	for off := 0; off < 3_000_000; off += 50_000 {
		mustRead(t, l, src, k, off, 50_000)
	}
	mustFetchOnce(t, src)
	if complete, err := l.Load(t.Context(), k); err != nil || complete {
		t.Errorf("complete: %v, %v", complete, err)
	}
	if l.stats.CacheErrors.Load() == 0 {
		t.Error("no error of the cache was counted")
	}
	// What is kept in memory is bounded.
	big := src.add(maxStranded+3_000_000, 1_000_000)
	for off := 0; off < maxStranded+3_000_000; off += 1_000_000 {
		mustRead(t, l, src, big, off, 1)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.strandedBytes > maxStranded || len(l.stranded) == 0 {
		t.Errorf("%d bytes in %d chunks are kept", l.strandedBytes, len(l.stranded))
	}
}

// TestDamagedCache checks that what the cache has and cannot give is fetched.
func TestDamagedCache(t *testing.T) {
	src := newSource()
	k := src.add(300_000, 100_000)
	l := newLoader(t, src)
	mustRead(t, l, src, k, 0, 200_000)
	eventually(t, "it is stored", l.idle)
	if err := os.Truncate(filepath.Join(filepath.Dir(l.cache.Dir()), "partial", k.String()), 0); err != nil {
		t.Fatal(err)
	}
	mustRead(t, l, src, k, 0, 200_000)
	if l.stats.CacheErrors.Load() == 0 {
		t.Error("no error of the cache was counted")
	}
}

// idle reports whether nothing is on its way.
func (l *Loader) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.flights) == 0
}

// TestEvicted checks that an object that was evicted while it was open here is
// loaded again, in either kind of file.
func TestEvicted(t *testing.T) {
	for _, chunk := range []int64{100_000, 1000} {
		src := newSource()
		k := src.add(10_000, chunk)
		l := newLoader(t, src)
		if complete, err := l.Load(t.Context(), k); err != nil || !complete {
			t.Fatalf("complete: %v, %v", complete, err)
		}
		mustRead(t, l, src, k, 0, 10_000) // it is open now
		if err := os.Remove(filepath.Join(l.cache.Dir(), k.String())); err != nil {
			t.Fatal(err)
		}
		mustRead(t, l, src, k, 0, 10_000)
		// Whoever still has it open keeps it from being made anew.
		eventually(t, "it is loaded again", func() bool {
			complete, err := l.Load(t.Context(), k)
			if err != nil {
				t.Error(err)
			}
			return complete
		})
		if !l.cache.Has(k) {
			t.Error("complete, and not in the cache")
		}
		mustRead(t, l, src, k, 0, 10_000)
	}
}

// TestScarceMemory has more wanted at once than there is memory for, in every
// order: nobody may wait for somebody who waits for him.
func TestScarceMemory(t *testing.T) {
	src := newSource()
	keys := []cache.Key{src.add(1_000_000, 100_000), src.add(1_000_000, 50_000), src.add(400_000, 400_000)}
	l := newLoader(t, src)
	l.memory = newMemory([purposes]int64{demand: 150_000, ahead: 100_000, background: 60_000})
	var wg sync.WaitGroup
	for seed := range uint64(16) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, 2))
			for range 20 {
				k := keys[r.IntN(len(keys))]
				switch r.IntN(8) {
				case 0:
					if _, err := l.prefetchAll(t.Context(), k); err != nil {
						t.Error(err)
					}
				case 1:
					if _, err := l.Load(t.Context(), k); err != nil {
						t.Error(err)
					}
				default:
					mustRead(t, l, src, k, r.IntN(len(src.data[k])), r.IntN(400_000))
				}
			}
		})
	}
	wg.Wait()
	mustFetchOnce(t, src)
	l.Close()
	for p, bound := range l.memory.bounds {
		if !l.memory.sems[p].TryAcquire(bound) {
			t.Errorf("purpose %d: memory is not given back", p)
		}
	}
}

// TestNoAllocation checks that what is here is read without any.
func TestNoAllocation(t *testing.T) {
	src := newSource()
	for what, k := range map[string]cache.Key{"several chunks": src.add(1_000_000, 100_000), "one": src.add(50_000, 100_000)} {
		l := newLoader(t, src)
		if _, err := l.Load(t.Context(), k); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 30_000)
		read := func() {
			if _, err := l.ReadAt(context.Background(), k, b, 10_000); err != nil {
				t.Error(err)
			}
		}
		read()
		if n := testing.AllocsPerRun(100, read); n > 0 {
			t.Errorf("%s: %v allocations", what, n)
		}
	}
}

// TestIdleObjectsAreClosed checks that files stay open for a while only, and few
// of them.
func TestIdleObjectsAreClosed(t *testing.T) {
	src := newSource()
	c := newCache(t)
	synctest.Test(t, func(t *testing.T) {
		l := loaderInto(t, c, src)
		for i := range maxIdle + 20 {
			k := src.add(int64(i+1), 100)
			if _, err := l.Load(t.Context(), k); err != nil {
				t.Fatal(err)
			}
			mustRead(t, l, src, k, 0, 100)
		}
		open := func() int {
			synctest.Wait()
			l.objects.mu.Lock()
			defer l.objects.mu.Unlock()
			return len(l.objects.objects)
		}
		if n := open(); n != maxIdle {
			t.Errorf("%d are open, want %d", n, maxIdle)
		}
		time.Sleep(idleTime)
		if n := open(); n != 0 {
			t.Errorf("%d are open after a while", n)
		}
	})
}
