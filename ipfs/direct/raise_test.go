package direct

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// held is a peer whose answers wait until open is closed, and that counts what
// it is asked for.
type held struct {
	mu    sync.Mutex
	asked map[string]int
	open  chan struct{}
}

func (h *held) handler(f testFile) http.HandlerFunc {
	serve := serving(f)
	return func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		h.asked[r.URL.Path]++
		h.mu.Unlock()
		select {
		case <-h.open:
			serve(w, r)
		case <-r.Context().Done():
		}
	}
}

func (h *held) count(c cid.Cid) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.asked["/ipfs/"+c.String()]
}

// A block that is on its way in bulk, and that somebody comes to wait for, is
// waited for and not asked for again: whoever the one is that waits, another
// Fetch or the same.
func TestRaise(t *testing.T) {
	f := newFile(t, 1, 1, 1000)
	leaf := f.leaves[0].Cid()
	for name, raise := range map[string]func(t *testing.T, reader *node, raised chan struct{}) (finish func()){
		"by itself": func(_ *testing.T, _ *node, raised chan struct{}) func() {
			close(raised)
			return func() {}
		},
		"by another": func(t *testing.T, reader *node, _ chan struct{}) func() {
			var wg sync.WaitGroup
			wg.Go(func() { fetch(t.Context(), t, reader.Exchange, f.want(false)) })
			return wg.Wait
		},
	} {
		t.Run(name, func(t *testing.T) {
			peer := &held{asked: map[string]int{}, open: make(chan struct{})}
			reader := newNode(t)
			reader.join(t, gateway(t, peer.handler(f)))
			want, raised := f.want(true), make(chan struct{})
			want.Raised = raised
			done := make(chan struct{})
			go func() {
				defer close(done)
				fetch(t.Context(), t, reader.Exchange, want)
			}()
			eventually(t, "the block is asked for", func() bool { return peer.count(leaf) == 1 })
			state := func() (waited, urgent int) {
				reader.Exchange.mu.Lock()
				defer reader.unlock()
				return reader.wants[leaf].waited, reader.urgent
			}
			if waited, urgent := state(); waited != 0 || urgent != 0 {
				t.Errorf("in bulk: %d wait, %d urgent", waited, urgent)
			}
			finish := raise(t, reader, raised)
			eventually(t, "it is waited for", func() bool { waited, _ := state(); return waited == 1 })
			close(peer.open)
			<-done
			finish()
			if n := peer.count(leaf); n != 1 {
				t.Errorf("asked for %d times", n)
			}
			reader.Exchange.mu.Lock()
			defer reader.unlock()
			if len(reader.wants) != 0 || reader.urgent != 0 {
				t.Errorf("%d wants are left, %d urgent", len(reader.wants), reader.urgent)
			}
		})
	}
}

// What is raised goes before the rest of the bulk that was wanted earlier.
func TestRaisedGoesFirst(t *testing.T) {
	f := newFile(t, 1, 200, 200_000) // more than is asked for at once
	peer := &held{asked: map[string]int{}, open: make(chan struct{})}
	reader := newNode(t)
	reader.know(f)
	reader.join(t, gateway(t, peer.handler(f)))
	var wg sync.WaitGroup
	last := len(f.leaves) - 1
	wg.Go(func() {
		bulk := f.want(true)
		bulk.CIDs = bulk.CIDs[:last]
		fetch(t.Context(), t, reader.Exchange, bulk)
	})
	under := func() int {
		reader.Exchange.mu.Lock()
		defer reader.unlock()
		return reader.bulkFlights
	}
	eventually(t, "some are asked for", func() bool { return under() > 0 })
	raised := make(chan struct{})
	wg.Go(func() {
		one := ipfs.Want{CIDs: []cid.Cid{f.leaves[last].Cid()}, Root: f.root.Cid(), Bulk: true, Raised: raised}
		fetch(t.Context(), t, reader.Exchange, one)
	})
	eventually(t, "it is wanted", func() bool {
		reader.Exchange.mu.Lock()
		defer reader.unlock()
		return reader.wants[f.leaves[last].Cid()] != nil
	})
	close(raised)
	eventually(t, "it is asked for", func() bool { return peer.count(f.leaves[last].Cid()) > 0 })
	if n := under(); n >= last {
		t.Errorf("%d of the bulk were asked for before", n)
	}
	close(peer.open)
	wg.Wait()
}

// Raising a Fetch that is over, or was never in bulk, does nothing.
func TestRaiseLate(t *testing.T) {
	f := newFile(t, 1, 3, 100)
	reader, a := newNode(t), newNode(t)
	a.hold(f, f.leaves...)
	reader.know(f)
	reader.join(t, a.Host)
	raised := make(chan struct{})
	close(raised)
	want := f.want(false)
	want.Raised = raised
	fetch(t.Context(), t, reader.Exchange, want)
	fetch(t.Context(), t, reader.Exchange, want)
}

// How late a raised block may be is as of any that somebody waits for.
func TestRaisedPatience(t *testing.T) {
	var m meter
	m.answered(time.Now(), time.Millisecond, 1000, false)
	w := &want{size: 1000, flights: map[*remote]*flight{{meter: m, ahead: 1000}: nil}}
	if p := w.soonest(); p != m.patience(1000, 1000) || p >= minBulkPatience {
		t.Errorf("%v", p)
	}
}

// What nobody has is lost for each who comes to wait for it: each looks
// elsewhere, and the first may have left by then.
func TestLostForEach(t *testing.T) {
	f := newFile(t, 1, 1, 1000)
	reader := newNode(t)
	reader.know(f)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for _, bulk := range []bool{false, false, true, false} {
		lost := make(chan struct{}, 1)
		wg.Go(func() {
			_ = reader.Fetch(ctx, f.want(bulk), func(cid.Cid, []byte) error { return nil }, func(cid.Cid) {
				select {
				case lost <- struct{}{}:
				default:
				}
			})
		})
		select {
		case <-lost:
		case <-time.After(time.Minute):
			t.Fatalf("one more who wants it (bulk: %v) is not told", bulk)
		}
	}
}
