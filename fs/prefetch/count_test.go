package prefetch_test

import (
	"context"
	"testing"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/fs/prefetch"
)

// slowLayer takes a millisecond for each object that it is asked for.
type slowLayer struct {
	*testLayer
	asked *int
}

func (l slowLayer) Object(n int32) (prefetch.Object, bool) {
	*l.asked++ // by the goroutine that counts, while the test waits for it
	time.Sleep(time.Millisecond)
	return l.testLayer.Object(n)
}

// TestCount: who asks for one layer learns at once what readers changed, has no
// other layer counted, and has it counted for a tenth of the time at most.
func TestCount(t *testing.T) {
	a, b := layerOf("a", "a1 a2*3 a3"), layerOf("b", "b1 b2")
	s := newStore(a, b)
	in(t, prefetch.Config{}, s, func(p *prefetch.Prefetcher, _ *log) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		asked := 0
		count := func(want int64) {
			t.Helper()
			if got, total, ok := p.Count(ctx, "a"); got != want*mib || total != 5*mib || !ok {
				t.Errorf("%d of %d, %t, want %d MiB of 5", got, total, ok, want)
			}
		}
		wantAsked := func(want int) {
			t.Helper()
			if asked != want {
				t.Errorf("%d objects were looked for, want %d", asked, want)
			}
			asked = 0
		}
		p.Add(slowLayer{a, &asked}, slowLayer{b, &asked})
		after(time.Second)
		wantAsked(5)
		count(0)
		s.put("a2")
		after(29 * time.Millisecond)
		count(0)
		after(time.Millisecond)
		count(3)
		wantAsked(6) // twice the three of this layer

		after(time.Second)
		cancel()
		s.put("a1")
		count(3) // does not wait
		p.Retain([]string{"b"})
		if _, _, ok := p.Count(ctx, "a"); ok {
			t.Error("a layer that is forgotten was counted")
		}
		after(time.Second)
	})
}
