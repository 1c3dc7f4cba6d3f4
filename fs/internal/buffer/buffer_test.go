package buffer

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSizes(t *testing.T) {
	var p pool
	for _, n := range []int64{0, 1, 16 << 10, 16<<10 + 1, 100_000, 1 << 20, 1<<20 + 1, hugePage, 5 << 20} {
		b := p.get(n)
		if int64(len(b.Bytes())) != n || cap(b.Bytes()) < 16<<10 || n > 16<<10 && int64(cap(b.Bytes())) >= 2*n {
			t.Errorf("%d bytes: length %d, capacity %d", n, len(b.Bytes()), cap(b.Bytes()))
		}
		clear(b.Bytes()) // it can be written
		p.put(b)
		if again := p.get(n); again != b {
			t.Errorf("%d bytes: it is not used again", n)
		} else {
			p.put(again)
		}
	}
}

// TestDistinct checks that no two users have the same memory.
func TestDistinct(t *testing.T) {
	var p pool
	var wg sync.WaitGroup
	for seed := range uint64(8) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, 1))
			for range 200 {
				b := p.get(r.Int64N(40_000))
				mine := bytes.Repeat([]byte{byte(seed)}, len(b.Bytes()))
				copy(b.Bytes(), mine)
				runtime.Gosched()
				if !bytes.Equal(b.Bytes(), mine) {
					t.Error("another one wrote here")
				}
				p.put(b)
			}
		})
	}
	wg.Wait()
	if p.used != 0 {
		t.Errorf("%d are lent", p.used)
	}
}

// TestTidy checks that memory goes back when nobody has used any for a while,
// and not before.
func TestTidy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pool
		regions := func() int {
			synctest.Wait()
			p.mu.Lock()
			defer p.mu.Unlock()
			return len(p.regions)
		}
		a, b := p.get(1<<20), p.get(1<<20)
		c := p.get(10 << 20)
		p.put(a)
		p.put(c)
		time.Sleep(2 * idleTime)
		if n := regions(); n != 2 {
			t.Errorf("%d regions while some is lent, want 2", n)
		}
		p.put(b)
		time.Sleep(idleTime - time.Second)
		p.put(p.get(1))
		time.Sleep(2 * time.Second)
		if n := regions(); n != 3 {
			t.Errorf("%d regions a moment after use, want 3", n)
		}
		time.Sleep(idleTime)
		if n := regions(); n != 0 {
			t.Errorf("%d regions after a while", n)
		}
		d := p.get(1 << 20)
		d.Bytes()[0] = 1
		p.put(d)
		time.Sleep(2 * idleTime)
	})
}

// TestNoAllocation checks that what was given back is lent again as it is.
func TestNoAllocation(t *testing.T) {
	var p pool
	p.put(p.get(1000))
	if n := testing.AllocsPerRun(100, func() { p.put(p.get(1000)) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
	p.trim.Stop()
}
