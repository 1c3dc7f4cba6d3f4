package prefetch_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/fs/prefetch"
)

var errDown = errors.New("nobody has it")

// TestBackoff: a layer that nobody has is tried ever less often, says so once,
// holds up no other, and goes on when somebody has it.
func TestBackoff(t *testing.T) {
	a, b := layerOf("a", "a1 a2 a3"), layerOf("b", "b1 b2 b3")
	s := newStore(a, b).named("a1 a2 a3 b1 b2 b3")
	var down atomic.Bool
	down.Store(true)
	s.fails = func(name string) error {
		if down.Load() && name[0] == 'a' {
			return errDown
		}
		return nil
	}
	cfg := all
	cfg.Head, cfg.Concurrency = false, 2
	in(t, cfg, s, func(p *prefetch.Prefetcher, l *log) {
		p.Add(b)
		p.Add(a)
		after(500 * time.Millisecond)
		expect(t, "fetched", s.fetched(), "a1 a2 b1 b2 b3")
		expect(t, "b", state(p, "b"), "done 3/3 3/3 MiB")
		expect(t, "a", state(p, "a"), "waiting 0/3 0/3 MiB nobody has it")
		after(time.Hour)
		at := s.times()
		// 2, 4, … 256 s, then every 5 minutes of an hour.
		if n := len(at); n < 15 || n > 25 {
			t.Errorf("%d tries in an hour", n)
		}
		if d := at[len(at)-1].Sub(at[len(at)-2]); d < 5*time.Minute || d > 6*time.Minute {
			t.Errorf("tried every %v in the end", d)
		}
		if n := l.lines("cannot be prefetched"); n != 1 {
			t.Errorf("told %d times that it fails", n)
		}
		s.fetched()
		down.Store(false)
		after(6 * time.Minute)
		expect(t, "fetched", s.fetched(), "a1 a2 a3")
		expect(t, "a", state(p, "a"), "done 3/3 3/3 MiB")
		if n := l.lines("prefetched again"); n != 1 {
			t.Errorf("told %d times that it goes on", n)
		}
	})
}

// TestMissingBlock: one chunk that nobody has keeps no other from coming, and
// is tried again when all others are here.
func TestMissingBlock(t *testing.T) {
	l := layerOf("l", "a*2 b c d")
	s := newStore(l).named("a b c d")
	s.fails = func(name string) error {
		if name == "a#1" {
			return errDown
		}
		return nil
	}
	in(t, all, s, func(p *prefetch.Prefetcher, lg *log) {
		p.Add(l)
		after(1500 * time.Millisecond)
		expect(t, "fetched", s.fetched(), "a#0 a#1 b c d a#1")
		expect(t, "state", state(p, "l"), "waiting 3/4 3/5 MiB nobody has it")
		if n := lg.lines("cannot be prefetched"); n != 0 {
			t.Errorf("told of one chunk %d times", n)
		}
	})
}

// TestBroken: what cannot be had is tried once.
func TestBroken(t *testing.T) {
	l := layerOf("l", "a b c")
	s := newStore(l).named("a b c")
	s.fails = func(name string) error {
		if name == "b" {
			return fmt.Errorf("wrong bytes: %w", prefetch.ErrBroken)
		}
		return nil
	}
	in(t, all, s, func(p *prefetch.Prefetcher, _ *log) {
		p.Add(l)
		after(time.Hour)
		expect(t, "fetched", s.fetched(), "a b c")
		expect(t, "state", state(p, "l"), "done 2/3 2/3 MiB")
	})
}

// TestNoRoom: nothing is begun that does not fit, and all goes on in order when
// it does.
func TestNoRoom(t *testing.T) {
	l := layerOf("l", "a | b*4 c")
	s := newStore(l).named("a b c")
	s.setRoom(3 * mib)
	in(t, all, s, func(p *prefetch.Prefetcher, lg *log) {
		p.Add(l)
		after(time.Hour)
		expect(t, "fetched", s.fetched(), "a")
		expect(t, "state", state(p, "l"), "waiting 1/3 1/6 MiB the cache has no room")
		s.setRoom(4 * mib)
		after(6 * time.Minute)
		expect(t, "fetched", s.fetched(), "b#0 b#1 b#2 b#3 c")
		expect(t, "state", state(p, "l"), "done 3/3 6/6 MiB")
		if n, m := lg.lines("until there is room"), lg.lines("there is room again"); n != 1 || m != 1 {
			t.Errorf("told %d and %d times", n, m)
		}
	})
}

// TestFullDisk: what was fetched and could not be kept stops all, for longer
// each time.
func TestFullDisk(t *testing.T) {
	a, b := layerOf("a", "a1 a2 a3"), layerOf("b", "b1 b2")
	s := newStore(a, b).named("a1 a2 a3 b1 b2")
	var full atomic.Bool
	full.Store(true)
	s.keeps = func(string) bool { return !full.Load() }
	cfg := all
	cfg.Concurrency = 2
	in(t, cfg, s, func(p *prefetch.Prefetcher, lg *log) {
		p.Add(a, b)
		after(5 * time.Second)
		expect(t, "fetched", s.fetched(), "a1 a2")
		expect(t, "state", state(p, "a"), "waiting 0/3 0/3 MiB the cache could not keep what was fetched: its disk is full")
		after(time.Hour)
		if n := len(s.times()); n > 30 {
			t.Errorf("%d chunks were fetched in vain in an hour", n)
		}
		full.Store(false)
		after(6 * time.Minute)
		expect(t, "a", state(p, "a"), "done 3/3 3/3 MiB")
		expect(t, "b", state(p, "b"), "done 2/2 2/2 MiB")
		if n, m := lg.lines("until there is room"), lg.lines("there is room again"); n != 1 || m != 1 {
			t.Errorf("told %d and %d times", n, m)
		}
	})
}

// TestRetain: a layer that is gone is stopped in the middle of a chunk.
func TestRetain(t *testing.T) {
	a, b := layerOf("a", "a1 a2 a3"), layerOf("b", "b1 b2")
	s := newStore(a, b).named("a1 a2 a3 b1 b2")
	s.takes = time.Minute
	in(t, all, s, func(p *prefetch.Prefetcher, _ *log) {
		p.Add(a, b)
		after(time.Second)
		p.Retain([]string{"b"})
		after(time.Millisecond)
		expect(t, "fetched", s.fetched(), "a1 b1")
		if s.stopped != 1 {
			t.Errorf("%d chunks were stopped, want 1", s.stopped)
		}
		expect(t, "state", state(p, "a"), "unknown")
		after(time.Hour)
		expect(t, "fetched", s.fetched(), "b2")

		p.Add(a)
		after(time.Hour)
		expect(t, "fetched when added again", s.fetched(), "a1 a2 a3")
	})
}

// TestAnything has all methods called at once, chunks fail and containers read,
// and closes amid it. It is for the race detector.
func TestAnything(t *testing.T) {
	var layers []prefetch.Layer
	var made []*testLayer
	for i := range 8 {
		l := layerOf(fmt.Sprint("l", i), fmt.Sprintf("x y%d*3 | z%d v%d*2 w", i%3, i, i%2))
		layers, made = append(layers, l), append(made, l)
	}
	s := newStore(made...)
	s.takes = 10 * time.Millisecond
	s.fails = func(string) error {
		return []error{nil, nil, nil, errDown, prefetch.ErrBroken}[rand.N(5)]
	}
	s.keeps = func(string) bool { return rand.N(500) > 0 }
	cfg := all
	cfg.Concurrency, cfg.Quiet = 4, time.Millisecond
	in(t, cfg, s, func(p *prefetch.Prefetcher, _ *log) {
		var wg sync.WaitGroup
		for _, do := range []func(){
			func() { p.Add(layers[rand.N(len(layers))], layers[rand.N(len(layers))]) },
			func() { p.Use([]string{fmt.Sprint("l", rand.N(8))}) },
			func() { p.Retain([]string{"l1", "l2", "l3", fmt.Sprint("l", rand.N(8))}) },
			func() { p.Progress() },
			func() { s.read(+1); s.read(-1) },
			func() { s.evict("x") },
			func() { s.setRoom(min(rand.N[int64](20), 1) << 40) },
		} {
			wg.Go(func() {
				for range 500 {
					do()
					time.Sleep(rand.N(time.Second))
				}
			})
		}
		wg.Go(func() {
			time.Sleep(200 * time.Second)
			p.Close()
		})
		wg.Wait()
		if s.active != 0 || len(s.times()) < 20 {
			t.Errorf("%d chunks are under way after Close, of %d", s.active, len(s.times()))
		}
	})
}
