// Package histogram counts how long things took, in buckets that double.
package histogram

import (
	"sync/atomic"
	"time"
)

const (
	least   = 50 * time.Microsecond // upper bound of the first bucket
	buckets = 22                    // with an upper bound: the last one's is 105 s
)

// Histogram counts durations. Its zero value is ready, it may be used by
// several goroutines at once, and it takes no lock. It must not be copied.
type Histogram struct {
	counts [buckets + 1]atomic.Int64 // the last: all that took longer
	sum    atomic.Int64              // nanoseconds
}

// Observe counts one duration. A negative one counts as none at all.
func (h *Histogram) Observe(d time.Duration) {
	d = max(d, 0)
	i := 0
	for i < buckets && d > least<<i {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(int64(d))
}

// Bucket is how many durations were at most so long, those of the buckets
// before it included: as Prometheus counts.
type Bucket struct {
	Seconds float64
	Count   int64
}

// Snapshot returns the buckets, the sum of all durations in seconds, and how
// many there were. What is observed at the same time may be in one of these and
// not yet in another.
func (h *Histogram) Snapshot() (le []Bucket, sum float64, count int64) {
	le = make([]Bucket, buckets)
	for i := range le {
		count += h.counts[i].Load()
		le[i] = Bucket{Seconds: (least << i).Seconds(), Count: count}
	}
	count += h.counts[buckets].Load()
	return le, time.Duration(h.sum.Load()).Seconds(), count
}
