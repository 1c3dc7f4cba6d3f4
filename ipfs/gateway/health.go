package gateway

import (
	"math"
	"time"
)

// Times that health is measured by and decides.
const (
	startTime    = 50 * time.Millisecond  // for a block, of a gateway that was not asked yet
	startHedge   = 500 * time.Millisecond // until the next is asked, for the same
	minHedge     = 20 * time.Millisecond
	maxHedge     = 2 * time.Second
	bulkHedge    = 4               // times as patient when nobody waits
	forgetting   = time.Minute     // half of what was measured, if nothing is measured since
	firstBackoff = time.Second / 4 // after a failure; doubles with each that follows
	maxBackoff   = 30 * time.Second
	maxToldTime  = 5 * time.Minute // of a Retry-After
	maxHandicap  = 4               // failures in a row that make it look slower
	waitForTired = 2 * time.Second // at most, for a gateway that failed, when there is no other
)

// health is what is known of a gateway. It is guarded by the client's mutex.
type health struct {
	mean, dev time.Duration // of the time to a block, smoothed; 0: not measured
	measured  time.Time
	failures  int // in a row
	failed    time.Time
	until     time.Time // it is left alone until then
	told      bool      // because it said so
	why       string    // what the last failure was
	lied      bool      // it is never asked again
	busy      [2]int    // requests under way, by class
}

// took counts the time to a block, as TCP does with round trips.
func (h *health) took(d time.Duration, now time.Time) {
	if h.mean == 0 {
		h.mean, h.dev = d, d/2
	} else {
		h.dev += ((h.mean - d).Abs() - h.dev) / 4
		h.mean += (d - h.mean) / 8
	}
	h.measured = now
	h.answered()
}

// answered counts an answer that shows that the gateway works.
func (h *health) answered() {
	h.failures = 0
	if !h.told {
		h.until = time.Time{}
	}
}

// tookLonger counts a request that was given up because another gateway was
// faster: it would have taken at least so long.
func (h *health) tookLonger(d time.Duration, now time.Time) {
	if d > h.mean {
		failures := h.failures
		h.took(d, now)
		h.failures = failures
	}
}

// fail counts a failure of a request that began at a time. Those that were
// under way together fail together, and count as one. wait is the time that the
// gateway asks for; 0: it did not.
func (h *health) fail(why string, began, now time.Time, wait time.Duration) {
	h.why = why
	if wait > 0 {
		if until := now.Add(min(wait, maxToldTime)); until.After(h.until) {
			h.until, h.told = until, true
		}
		return
	}
	if !began.After(h.failed) {
		return
	}
	h.failed = now
	h.failures++
	backoff := min(firstBackoff<<min(h.failures-1, 10), maxBackoff)
	if until := now.Add(backoff); until.After(h.until) {
		h.until, h.told = until, false
	}
}

// expect is how long a block is likely to take, with what the gateway has to do
// already. What was measured long ago is believed less and less, or a gateway
// that was slow once would never be asked again.
func (h *health) expect(kind class, slots [2]int, now time.Time) time.Duration {
	t := startTime
	if h.mean > 0 {
		age := now.Sub(h.measured)
		t = time.Duration(float64(h.mean) * math.Exp2(-float64(age)/float64(forgetting)))
	}
	load := 1 + 2*float64(h.busy[kind])/float64(slots[kind])
	return time.Duration(float64(t+time.Millisecond) * load * float64(1+min(h.failures, maxHandicap)))
}

// hedge is the time after which the gateway is slower than usual.
func (h *health) hedge(kind class) time.Duration {
	t := startHedge
	if h.mean > 0 {
		t = min(max(h.mean+4*h.dev, minHedge), maxHedge)
	}
	if kind == bulk {
		t *= bulkHedge
	}
	return t
}

// state says what is known of it, for an error; "" if it is well.
func (h *health) state(now time.Time) string {
	switch {
	case h.lied:
		return "it sent wrong bytes and is not asked any more"
	case now.Before(h.until) && h.told:
		return h.why + ", it is to be left alone for " + h.until.Sub(now).Round(time.Second/10).String()
	case now.Before(h.until):
		return "not asked after " + h.why
	default:
		return ""
	}
}
