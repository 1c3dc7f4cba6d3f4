package prefetch_test

import (
	"testing"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/fs/prefetch"
)

// TestOrder: heads of a pull's layers in turn, then what is left of each.
func TestOrder(t *testing.T) {
	a, b := layerOf("a", "a1 a2*2 | a3 a4"), layerOf("b", "b1 b2 b3 | b4")
	s := newStore(a, b).named("a1 a2 a3 a4 b1 b2 b3 b4")
	in(t, all, s, func(p *prefetch.Prefetcher, _ *log) {
		p.Add(a, b)
		after(time.Minute)
		expect(t, "fetched", s.fetched(), "a1 b1 a2#0 b2 a2#1 b3 a3 a4 b4")
		expect(t, "a", state(p, "a"), "done 4/4 5/5 MiB")
		expect(t, "b", state(p, "b"), "done 4/4 4/4 MiB")
	})
}

// TestUsedFirst: what is mounted goes first, also when another was begun; and a
// new pull's head goes before that.
func TestUsedFirst(t *testing.T) {
	a, b, c := layerOf("a", "a1 a2 a3"), layerOf("b", "b1 b2 b3"), layerOf("c", "c1 | c2")
	s := newStore(a, b, c).named("a1 a2 a3 b1 b2 b3 c1 c2")
	s.takes = time.Second
	in(t, all, s, func(p *prefetch.Prefetcher, _ *log) {
		p.Add(a)
		after(500 * time.Millisecond)
		p.Add(b)
		after(time.Second)
		p.Use([]string{"a", "unknown"})
		after(time.Second)
		p.Add(c)
		after(time.Minute)
		expect(t, "fetched", s.fetched(), "a1 b1 a2 c1 c2 a3 b2 b3")
	})
}

// TestDemand: when a container reads, no chunk is begun but those under way.
func TestDemand(t *testing.T) {
	l := layerOf("l", "h*100 | r*100")
	s := newStore(l).named("h r")
	s.takes = time.Second
	cfg := all
	cfg.Concurrency = 4
	in(t, cfg, s, func(p *prefetch.Prefetcher, _ *log) {
		p.Add(l)
		after(1500 * time.Millisecond)
		expect(t, "before", s.fetched(), "h#0 h#1 h#2 h#3 h#4 h#5 h#6 h#7")
		s.read(+1)
		after(time.Hour)
		expect(t, "while a container reads", s.fetched(), "")
		expect(t, "state", state(p, "l"), "waiting 0/2 0/200 MiB containers read")
		s.read(+1)
		s.read(-1)
		after(time.Hour)
		expect(t, "while another reads", s.fetched(), "")
		s.read(-1)
		after(time.Millisecond)
		expect(t, "head, at once after", s.fetched(), "h#10 h#11 h#8 h#9")
		expect(t, "state", state(p, "l"), "head 0/2 0/200 MiB")
		after(time.Duration(len("100"))*8*time.Second - time.Millisecond)
		s.fetched()

		// The same in the rest, which waits for longer.
		s.read(+1)
		after(time.Minute)
		s.fetched()
		s.read(-1)
		after(199 * time.Millisecond)
		expect(t, "rest, a moment after", s.fetched(), "")
		s.read(+1)
		s.read(-1)
		after(199 * time.Millisecond)
		expect(t, "rest, a moment after another", s.fetched(), "")
		after(2 * time.Millisecond)
		if n := len(s.times()); n != 4 {
			t.Errorf("rest, after that: %d chunks, want 4", n)
		}
		expect(t, "state", state(p, "l"), "background 1/2 100/200 MiB")
	})
}

// TestRate: the rest holds its rate, heads none.
func TestRate(t *testing.T) {
	l := layerOf("l", "h*10 | r1 r2*4 r3")
	s := newStore(l).named("h r1 r2 r3")
	cfg := all
	cfg.Rate, cfg.Concurrency = mib/2, 4
	in(t, cfg, s, func(p *prefetch.Prefetcher, _ *log) {
		p.Add(l)
		after(time.Minute)
		at := s.times()
		if len(at) != 16 {
			t.Fatalf("%d chunks", len(at))
		}
		if d := at[9].Sub(at[0]); d > 10*time.Millisecond {
			t.Errorf("the head took %v", d)
		}
		for i, want := 11, 2*time.Second; i < len(at); i++ {
			if d := at[i].Sub(at[i-1]); d != want {
				t.Errorf("chunk %d came %v after the one before, want %v", i, d, want)
			}
		}
	})
}

func TestConcurrency(t *testing.T) {
	a, b := layerOf("a", "a1 a2 a3 | a4*20"), layerOf("b", "b1 b2 b3 | b4 b5")
	for _, n := range []int{1, 3, 8} {
		s := newStore(a, b)
		cfg := all
		cfg.Concurrency = n
		in(t, cfg, s, func(p *prefetch.Prefetcher, _ *log) {
			p.Add(a, b)
			after(time.Minute)
			if s.most != n {
				t.Errorf("%d chunks at once, want %d", s.most, n)
			}
			expect(t, "a", state(p, "a"), "done 4/4 23/23 MiB")
		})
	}
}

func TestOff(t *testing.T) {
	for what, c := range map[string]struct {
		cfg            prefetch.Config
		fetched, state string
	}{
		"all":        {prefetch.Config{}, "", "off 0/2 0/2 MiB"},
		"background": {prefetch.Config{Head: true}, "h", "off 1/2 1/2 MiB"},
		"head":       {prefetch.Config{Background: true}, "h r", "done 2/2 2/2 MiB"},
	} {
		l := layerOf("l", "h | r")
		s := newStore(l).named("h r")
		in(t, c.cfg, s, func(p *prefetch.Prefetcher, _ *log) {
			p.Add(l)
			p.Use([]string{"l"})
			after(time.Minute)
			expect(t, what, s.fetched(), c.fetched)
			expect(t, what, state(p, "l"), c.state)
			s.put("h")
			s.put("r")
			after(time.Minute)
			state(p, "l")
			after(time.Minute)
			expect(t, "all is here", state(p, "l"), "done 2/2 2/2 MiB")
		})
	}
}

// TestOnce: what is here is not fetched, whoever brought it, and what several
// layers hold is fetched once.
func TestOnce(t *testing.T) {
	a, b := layerOf("a", "x y | z u"), layerOf("b", "v | x z w")
	s := newStore(a, b).named("x y z u v w")
	s.put("u")
	in(t, all, s, func(p *prefetch.Prefetcher, _ *log) {
		p.Add(a, b)
		after(time.Minute)
		expect(t, "fetched", s.fetched(), "x v y z w")
		p.Add(a, b)
		after(time.Minute)
		expect(t, "fetched when added once more", s.fetched(), "")
	})
}

// TestResume: a restart goes on where it was, and goes through nothing that is
// complete.
func TestResume(t *testing.T) {
	a, b := layerOf("a", "a1 a2 a3"), layerOf("b", "b1 b2")
	s := newStore(a, b).named("a1 a2 a3 b1 b2")
	s.put("b1")
	s.put("b2")
	cfg := all
	cfg.Head = false
	in(t, cfg, s, func(p *prefetch.Prefetcher, _ *log) {
		s.takes = time.Second
		p.Add(a, b)
		after(1500 * time.Millisecond)
	})
	if s.stopped != 1 {
		t.Errorf("%d chunks were stopped by closing, want 1", s.stopped)
	}
	expect(t, "before", s.fetched(), "a1 a2")
	in(t, cfg, s, func(p *prefetch.Prefetcher, _ *log) {
		p.Add(a, b)
		after(time.Minute)
		expect(t, "after", s.fetched(), "a2 a3")
	})
	if b.ordered != 0 {
		t.Error("went through a layer that is complete")
	}
}

// TestEviction: what is evicted is not fetched again before it is of use again,
// and the progress tells of it, and of what readers brought.
func TestEviction(t *testing.T) {
	l := layerOf("l", "a b c")
	s := newStore(l).named("a b c")
	in(t, all, s, func(p *prefetch.Prefetcher, _ *log) {
		p.Add(l)
		after(time.Minute)
		expect(t, "fetched", s.fetched(), "a b c")
		s.evict("b")
		s.evict("c")
		after(time.Minute)
		expect(t, "first answer", state(p, "l"), "done 3/3 3/3 MiB")
		after(time.Second)
		expect(t, "next answer", state(p, "l"), "done 1/3 1/3 MiB")
		s.put("c")
		after(8 * time.Second)
		expect(t, "counted a moment ago", state(p, "l"), "done 1/3 1/3 MiB")
		after(8 * time.Second)
		state(p, "l")
		after(time.Second)
		expect(t, "after a reader", state(p, "l"), "done 2/3 2/3 MiB")
		expect(t, "fetched of what was evicted", s.fetched(), "")
		p.Use([]string{"l"})
		after(time.Minute)
		expect(t, "fetched when mounted again", s.fetched(), "b")
	})
}
