package direct

import "time"

// A peer's link is kept busy with a short queue: what is under way in bulk
// grows while answers begin as soon as they ever did, and shrinks when they
// begin later than queueTarget after that. So what somebody waits for finds a
// short queue in front of it, whatever the link and however many share it.
const (
	queueTarget = 40 * time.Millisecond
	firstWindow = 1 << 20   // bytes
	minWindow   = 128 << 10 // a part or two
	maxWindow   = 16 << 20

	// What is assumed of a peer that was not asked for anything yet.
	firstDelay = 50 * time.Millisecond
	firstRate  = 10e6 // bytes a second

	baseLifetime = 20 * time.Second // of the shortest delay seen
	rateInterval = 50 * time.Millisecond
)

// meter measures one peer: how soon its answers begin, how fast they come.
type meter struct {
	delay, deviation time.Duration // smoothed (RFC 6298); 0 at first
	// The shortest delay of the current period, of the one before, and when
	// the period began: a path that has become longer is noticed.
	base, oldBase time.Duration
	baseSince     time.Time

	rate      float64 // bytes a second while busy, smoothed; 0 at first
	since     time.Time
	delivered int

	window int // bytes to have under way in bulk
}

// busy tells that the peer has something to do from now on.
func (m *meter) busy(now time.Time) { m.since, m.delivered = now, 0 }

// answered takes in an answer of n bytes that began after delay.
func (m *meter) answered(now time.Time, delay time.Duration, n int, bulk bool) {
	if m.delay == 0 {
		m.delay, m.deviation = delay, delay/2
	} else {
		m.deviation += ((delay - m.delay).Abs() - m.deviation) / 4
		m.delay += (delay - m.delay) / 8
	}
	if m.base == 0 || now.Sub(m.baseSince) > baseLifetime {
		m.oldBase, m.base, m.baseSince = m.base, delay, now
	}
	m.base = min(m.base, delay)

	m.delivered += n
	if t := now.Sub(m.since); t >= rateInterval {
		seen := float64(m.delivered) / t.Seconds()
		if m.rate == 0 {
			m.rate = seen
		} else {
			m.rate += (seen - m.rate) / 4
		}
		m.busy(now)
	}
	if bulk {
		m.adapt(delay-m.shortest(), n)
	}
}

// adapt changes the window after n bytes that waited in a queue so long.
func (m *meter) adapt(queued time.Duration, n int) {
	if queued < queueTarget {
		m.window += n // doubles it in the time of one round trip
	} else {
		// Of a whole window that comes so late a half is taken away at most.
		late := float64(queued-queueTarget) / float64(queued)
		m.window -= int(late * float64(n) / 2)
	}
	m.window = min(max(m.window, minWindow), maxWindow)
}

func (m *meter) shortest() time.Duration {
	if m.oldBase > 0 {
		return min(m.base, m.oldBase)
	}
	return m.base
}

// expect is when size bytes will be here if they are asked for now, behind so
// many that are under way.
func (m *meter) expect(ahead, size int) time.Duration {
	delay, rate := m.delay, m.rate
	if delay == 0 {
		delay = firstDelay
	}
	if rate == 0 {
		rate = firstRate
	}
	return delay + seconds(float64(ahead+size)/rate)
}

// Bounds on the time that a peer is given before a second one is asked.
const (
	minPatience   = 25 * time.Millisecond
	maxPatience   = 2 * time.Second
	firstPatience = 300 * time.Millisecond
)

// patience is after how long size bytes behind so many others are late.
func (m *meter) patience(ahead, size int) time.Duration {
	if m.delay == 0 {
		return firstPatience
	}
	rate := m.rate
	if rate == 0 {
		rate = firstRate
	}
	usual := m.delay + 4*m.deviation + 2*seconds(float64(ahead+size)/rate)
	return min(max(usual, minPatience), maxPatience)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
