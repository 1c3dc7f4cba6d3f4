package discovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// noted are the notifiees of a network that does nothing.
type noted struct{ all []network.Notifiee }

func (n *noted) Notify(x network.Notifiee) { n.all = append(n.all, x) }

func (n *noted) StopNotify(x network.Notifiee) {
	n.all = slices.DeleteFunc(n.all, func(y network.Notifiee) bool { return x == y })
}

// said notes when something was announced, and what came of it.
type said struct {
	mu      sync.Mutex
	start   time.Time
	at      map[cid.Cid][]time.Duration
	fail    bool
	now     int
	most    int
	holding chan struct{} // if not nil, nothing ends before it is closed
}

func (s *said) say(ctx context.Context, root cid.Cid) error {
	s.mu.Lock()
	s.at[root] = append(s.at[root], time.Since(s.start))
	s.now++
	s.most = max(s.most, s.now)
	fail, holding := s.fail, s.holding
	s.mu.Unlock()
	if holding != nil {
		select {
		case <-holding:
		case <-ctx.Done():
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now--
	if fail {
		return errors.New("nobody is there")
	}
	return nil
}

func (s *said) times(root cid.Cid) []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.at[root])
}

func announcing(t *testing.T, test func(a *announcer, s *said, n *noted)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s, n := &said{start: time.Now(), at: make(map[cid.Cid][]time.Duration)}, &noted{}
		a := startAnnouncer(s.say, 2*time.Minute, time.Hour, n, testLog(t))
		test(a, s, n)
		a.stop()
		if len(n.all) > 0 {
			t.Errorf("notifications go on")
		}
	})
}

func TestAnnouncedEverMoreRarely(t *testing.T) {
	announcing(t, func(a *announcer, s *said, _ *noted) {
		root := testCID(t, "a")
		if err := errors.Join(a.provide(root), a.provide(root)); err != nil {
			t.Error(err)
		}
		time.Sleep(3 * time.Hour)
		want := []time.Duration{0, 2, 6, 14, 30, 62, 122}
		for i := range want {
			want[i] *= time.Minute
		}
		if got := s.times(root); !slices.Equal(got, want) {
			t.Errorf("announced at %v, want %v", got, want)
		}
		a.withdraw(root)
		a.withdraw(root)
		time.Sleep(24 * time.Hour)
		if got := s.times(root); len(got) != len(want) {
			t.Errorf("announced after it was withdrawn: %v", got[len(want):])
		}
	})
}

func TestAnnouncedAgainAfterAFailure(t *testing.T) {
	announcing(t, func(a *announcer, s *said, n *noted) {
		root := testCID(t, "a")
		s.fail = true
		if err := a.provide(root); err != nil {
			t.Error(err)
		}
		time.Sleep(31 * time.Second)
		want := []time.Duration{0, 2, 6, 14, 30}
		for i := range want {
			want[i] *= time.Second
		}
		if got := s.times(root); !slices.Equal(got, want) {
			t.Errorf("announced at %v, want %v", got, want)
		}
		time.Sleep(time.Hour)
		// It is tried every five minutes now, but a peer that arrives is reason
		// to try at once.
		before := len(s.times(root))
		s.fail = false
		n.all[0].Connected(nil, nil)
		time.Sleep(2 * time.Second)
		if got := len(s.times(root)); got != before+1 {
			t.Errorf("announced %d times, want once", got-before)
		}
		// And no reason when nothing failed.
		n.all[0].Connected(nil, nil)
		time.Sleep(2 * time.Second)
		if got := len(s.times(root)); got != before+1 {
			t.Errorf("announced %d times, want once", got-before)
		}
	})
}

func TestAnnouncesFewAtOnce(t *testing.T) {
	announcing(t, func(a *announcer, s *said, _ *noted) {
		s.holding = make(chan struct{})
		roots := make([]cid.Cid, 20)
		for i := range roots {
			roots[i] = testCID(t, fmt.Sprint(i))
			if err := a.provide(roots[i]); err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		if s.now != announcesAtOnce {
			t.Errorf("%d at once, want %d", s.now, announcesAtOnce)
		}
		// What is withdrawn while it is under way, or before, is not said again.
		for _, r := range roots[:10] {
			a.withdraw(r)
		}
		close(s.holding)
		time.Sleep(time.Second)
		for _, r := range roots[10:] {
			if len(s.times(r)) == 0 {
				t.Error("one was not announced")
			}
		}
		time.Sleep(time.Hour)
		for _, r := range roots[:10] {
			if n := len(s.times(r)); n > 1 {
				t.Errorf("announced %d times though withdrawn", n)
			}
		}
		if s.most > announcesAtOnce {
			t.Errorf("%d at once", s.most)
		}
	})
}

// Closing ends what is under way.
func TestStopWhileAnnouncing(t *testing.T) {
	announcing(t, func(a *announcer, s *said, _ *noted) {
		s.holding = make(chan struct{})
		for i := range 10 {
			if err := a.provide(testCID(t, fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
	})
}

func TestProvideRefuses(t *testing.T) {
	announcing(t, func(a *announcer, _ *said, _ *noted) {
		if err := a.provide(cid.Undef); !errors.Is(err, ipfs.ErrBadCID) {
			t.Errorf("no CID: %v", err)
		}
		for i := range maxRoots {
			a.roots[testCID(t, fmt.Sprint(i))] = &announcement{}
		}
		if err := a.provide(testCID(t, "one more")); !errors.Is(err, ErrTooManyRoots) {
			t.Errorf("too many: %v", err)
		}
	})
}
