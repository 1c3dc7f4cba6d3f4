package histogram

import (
	"math"
	"sync"
	"testing"
	"time"
)

// TestBuckets checks each bucket's two ends.
func TestBuckets(t *testing.T) {
	for i := range buckets {
		var h Histogram
		h.Observe(least << i)   // the last that belongs here
		h.Observe(least<<i + 1) // the first that does not
		le, _, count := h.Snapshot()
		if le[i].Count != 1 || count != 2 {
			t.Errorf("up to %v: %d of %d, want 1 of 2", least<<i, le[i].Count, count)
		}
		if i > 0 && le[i-1].Count != 0 {
			t.Errorf("%v counts as %v or less", least<<i, least<<(i-1))
		}
		if i+1 < buckets && le[i+1].Count != 2 {
			t.Errorf("%v does not count as %v or less", least<<i+1, least<<(i+1))
		}
	}
}

func TestExtremes(t *testing.T) {
	var h Histogram
	for _, d := range []time.Duration{-time.Hour, 0, 1, 1000 * time.Hour} {
		h.Observe(d)
	}
	le, sum, count := h.Snapshot()
	if le[0].Count != 3 || le[len(le)-1].Count != 3 || count != 4 {
		t.Errorf("%v of %d, want three in the first and one in none", le, count)
	}
	if sum < 3_600_000 {
		t.Errorf("sum %v", sum)
	}
}

func TestConcurrent(t *testing.T) {
	var h Histogram
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				h.Observe(time.Millisecond)
			}
		})
	}
	wg.Wait()
	if _, sum, count := h.Snapshot(); count != 4000 || math.Abs(sum-4) > 1e-9 {
		t.Errorf("%d, %v s", count, sum)
	}
	if n := testing.AllocsPerRun(100, func() { h.Observe(time.Second) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
