package direct

import (
	"testing"
	"time"
)

// What is under way grows while answers begin soon, and shrinks when they
// begin late, down to little and never to nothing.
func TestWindow(t *testing.T) {
	m := meter{window: firstWindow}
	now := time.Now()
	answer := func(delay time.Duration) {
		now = now.Add(10 * time.Millisecond)
		m.answered(now, delay, 64<<10, true)
	}
	for range 100 {
		answer(5 * time.Millisecond)
	}
	if m.window <= firstWindow {
		t.Errorf("with no queue the window is %d", m.window)
	}
	grown := m.window
	for range 1000 {
		answer(500 * time.Millisecond)
	}
	if m.window >= grown || m.window < minWindow {
		t.Errorf("with a queue the window is %d, was %d", m.window, grown)
	}
	for range 10_000 {
		answer(0)
	}
	if m.window != maxWindow {
		t.Errorf("the window is %d, want the most, %d", m.window, maxWindow)
	}
}

// A path that has become longer is not taken for a queue for ever.
func TestLongerPath(t *testing.T) {
	m := meter{window: firstWindow}
	now := time.Now()
	for range 10 {
		now = now.Add(time.Second)
		m.answered(now, time.Millisecond, 1000, true)
	}
	for range 60 {
		now = now.Add(time.Second)
		m.answered(now, 100*time.Millisecond, 1000, true)
	}
	if got := m.shortest(); got != 100*time.Millisecond {
		t.Errorf("the shortest delay is %v, want 100 ms", got)
	}
}

func TestExpect(t *testing.T) {
	var unknown, near, far meter
	now := time.Now()
	near.busy(now)
	far.busy(now)
	for i := range 20 {
		at := now.Add(time.Duration(i+1) * 100 * time.Millisecond)
		near.answered(at, time.Millisecond, 1e6, false)
		far.answered(at, 80*time.Millisecond, 5e6, false)
	}
	if near.expect(0, 1e5) >= far.expect(0, 1e5) {
		t.Error("a small block is expected sooner from far away")
	}
	if near.expect(0, 1e7) <= far.expect(0, 1e7) {
		t.Error("a large block is expected later from the quicker peer")
	}
	if near.expect(5e6, 1e5) <= far.expect(0, 1e5) {
		t.Error("what is under way makes no difference")
	}
	if unknown.expect(0, 1e5) <= near.expect(0, 1e5) {
		t.Error("an unknown peer is preferred")
	}
	for _, m := range []meter{unknown, near, far} {
		if p := m.patience(0, 1e5); p < minPatience || p > maxPatience || p < m.delay {
			t.Errorf("patience %v with a delay of %v", p, m.delay)
		}
	}
}
