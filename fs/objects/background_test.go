package objects

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// TestRaised checks that what a prefetcher has on its way is not fetched again
// for a reader who comes to wait for it, but that its source is told.
func TestRaised(t *testing.T) {
	src := newSource()
	k := src.add(300_000, 100_000)
	l := newLoader(t, src)
	gate := make(chan struct{})
	src.gate = gate
	prefetched := make(chan error, 1)
	go func() {
		_, err := l.prefetchAll(t.Context(), k)
		prefetched <- err
	}()
	eventually(t, "all are on their way", func() bool { return src.count() == 3 })
	read := make(chan error, 1)
	go func() {
		_, err := l.ReadAt(t.Context(), k, make([]byte, 10), 150_000)
		read <- err
	}()
	for _, a := range src.calls() {
		switch {
		case a.raised == nil:
			t.Errorf("chunk %d is fetched as if somebody waited for it", a.chunk)
		case a.chunk == 1:
			<-a.raised
		default:
			select {
			case <-a.raised:
				t.Errorf("chunk %d was raised, and nobody wants it", a.chunk)
			default:
			}
		}
	}
	close(gate)
	if err := errors.Join(<-read, <-prefetched); err != nil {
		t.Error(err)
	}
	mustFetchOnce(t, src)
	s := l.Stats()
	if s.Raised.Load() != 1 || s.ForDemand().Chunks.Load() != 1 || s.ForPrefetch().Chunks.Load() != 2 || s.Joined.Load() != 1 {
		t.Errorf("raised %d, for demand %d, prefetched %d, joined %d", s.Raised.Load(), s.ForDemand().Chunks.Load(), s.ForPrefetch().Chunks.Load(), s.Joined.Load())
	}
}

// TestDemandOvertakes checks that a prefetcher asks for nothing more while a
// reader waits: what is on its way is all that is before him.
func TestDemandOvertakes(t *testing.T) {
	src := newSource()
	c := newCache(t)
	synctest.Test(t, func(t *testing.T) {
		big, small := src.add(2_000_000, 100_000), src.add(1000, 100_000)
		l := loaderInto(t, c, src)
		src.gate = make(chan struct{})
		prefetched := make(chan error, 1)
		go func() {
			_, err := l.prefetchAll(t.Context(), big)
			prefetched <- err
		}()
		synctest.Wait()
		if n := src.count(); n != maxBoarded[background] {
			t.Errorf("%d are on their way at once, want %d", n, maxBoarded[background])
		}
		before := len(src.calls())
		read := make(chan error, 1)
		go func() {
			_, err := l.Load(t.Context(), small)
			read <- err
		}()
		synctest.Wait()
		// What was on its way arrives, and what the reader wants does not yet.
		slow := make(chan struct{})
		src.set(func() { close(src.gate); src.gate = slow })
		if a := src.calls(); len(a) != before+1 || a[before].raised != nil {
			t.Fatalf("%d calls, the last in the background: %v; want %d, and not", len(a), a[len(a)-1].raised != nil, before+1)
		}
		if err := <-read; err != nil {
			t.Error(err)
		}
		// The reader is gone: it goes on.
		synctest.Wait()
		if n := src.count(); n == 0 {
			t.Error("nothing is prefetched after the reader has gone")
		}
		close(slow)
		if err := <-prefetched; err != nil {
			t.Error(err)
		}
	})
	mustFetchOnce(t, src)
}

// TestStandsBack checks that a prefetcher does not begin while somebody waits.
func TestStandsBack(t *testing.T) {
	src := newSource()
	c := newCache(t)
	synctest.Test(t, func(t *testing.T) {
		k := src.add(300_000, 100_000)
		l := loaderInto(t, c, src)
		l.gate.begin()
		ctx, cancel := context.WithCancel(t.Context())
		left, stays := make(chan error, 1), make(chan error, 1)
		go func() { _, err := l.prefetchAll(ctx, k); left <- err }()
		go func() { _, err := l.prefetchAll(t.Context(), k); stays <- err }()
		synctest.Wait()
		if n := len(src.calls()); n != 0 {
			t.Errorf("%d chunks were asked for", n)
		}
		cancel()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		l.gate.end()
		if err := <-stays; err != nil {
			t.Error(err)
		}
	})
}

// TestQuiet checks how long somebody waits who wants no reader about.
func TestQuiet(t *testing.T) {
	src := newSource()
	c := newCache(t)
	synctest.Test(t, func(t *testing.T) {
		l := loaderInto(t, c, src)
		start := time.Now()
		if err := l.Quiet(t.Context(), time.Hour); err != nil || time.Since(start) != 0 {
			t.Errorf("nobody ever waited: %v after %v", err, time.Since(start))
		}
		l.gate.begin()
		l.gate.begin()
		time.AfterFunc(10*time.Second, l.gate.end)
		time.AfterFunc(20*time.Second, l.gate.end)
		time.AfterFunc(25*time.Second, l.gate.begin)
		time.AfterFunc(26*time.Second, l.gate.end)
		if n, _ := l.gate.state(); n != 2 {
			t.Errorf("%d wait", n)
		}
		if err := l.Quiet(t.Context(), 10*time.Second); err != nil || time.Since(start) != 36*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if n, last := l.gate.state(); n != 0 || last.Sub(start) != 26*time.Second {
			t.Errorf("%d wait, the last until %v", n, last.Sub(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.Quiet(ctx, time.Minute); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

// TestReadAhead checks that chunks come before a reader in order wants them, no
// more than a window of them, and none for a reader who reads here and there.
func TestReadAhead(t *testing.T) {
	src := newSource()
	c := newCache(t)
	synctest.Test(t, func(t *testing.T) {
		const chunks, chunk = 100, 100_000
		inOrder, random := src.add(chunks*chunk, chunk), src.add(chunks*chunk+1, chunk)
		l := loaderInto(t, c, src)
		ahead := func() int {
			synctest.Wait()
			return int(l.stats.ForReadAhead().Chunks.Load())
		}
		mustRead(t, l, src, inOrder, 0, 50_000)
		if n := ahead(); n != 0 {
			t.Errorf("%d chunks ahead of a reader that read once", n)
		}
		for i, before := 1, 0; i < 2*chunks; i++ {
			mustRead(t, l, src, inOrder, i*50_000, 50_000)
			n := ahead()
			if i == 1 && n != 2 {
				t.Errorf("%d chunks ahead at first", n)
			}
			if n < before || n > i/2+2+maxWindow/chunk {
				t.Errorf("%d chunks ahead after %d bytes", n, i*50_000)
			}
			before = n
		}
		if n := l.stats.ForDemand().Chunks.Load(); n != 1 {
			t.Errorf("the reader waited for %d chunks, want the first alone", n)
		}
		before := ahead()
		r := rand.New(rand.NewPCG(1, 1))
		for range 100 {
			mustRead(t, l, src, random, r.IntN(chunks)*chunk, 1000)
		}
		if n := ahead() - before; n > 5 { // some follow one another by chance
			t.Errorf("%d chunks ahead of one who reads at random", n)
		}
	})
	mustFetchOnce(t, src)
}

// TestReadAheadNarrows checks that less is read ahead where it comes late.
func TestReadAheadNarrows(t *testing.T) {
	c := newCache(t)
	synctest.Test(t, func(t *testing.T) {
		src := newSource()
		k := src.add(10_000_000, 100_000)
		l := loaderInto(t, c, src)
		o, err := l.objects.get(k)
		if err != nil {
			t.Fatal(err)
		}
		defer l.objects.put(o)
		window := func() int64 { return o.streams[0].window }
		for i := range int64(40) {
			time.Sleep(time.Millisecond)
			o.follow(i*100_000, (i+1)*100_000, true)
		}
		wide := window()
		if wide < 1<<20 {
			t.Fatalf("window of %d", wide)
		}
		soon := time.Now()
		o.arrived(soon)
		if window() != wide {
			t.Error("narrowed by what came soon")
		}
		time.Sleep(late)
		for range 10 { // all of one window
			o.arrived(soon)
		}
		if window() != wide/2 {
			t.Errorf("window of %d, want half of %d", window(), wide)
		}
	})
}
