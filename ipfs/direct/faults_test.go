package direct

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// stuck answers nothing until the request is called off.
func stuck(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// faults are peers that break the rules, or down, each in one way.
var faults = []struct {
	name string
	bad  func(f testFile) http.HandlerFunc
	ban  bool
}{
	{"stalls before the answer", func(testFile) http.HandlerFunc { return stuck }, false},
	{"stalls within the answer", func(testFile) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(make([]byte, 500))
			_ = http.NewResponseController(w).Flush()
			stuck(w, r)
		}
	}, false},
	{"drips", func(testFile) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			for range 1000 {
				if _, err := w.Write([]byte{0}); err != nil {
					return
				}
				_ = http.NewResponseController(w).Flush()
				select {
				case <-r.Context().Done():
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		}
	}, false},
	{"lies", func(testFile) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1000)) }
	}, true},
	{"announces too much", func(testFile) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(ipfs.MaxBlockSize+1))
			_ = http.NewResponseController(w).Flush()
			stuck(w, r)
		}
	}, true},
	{"sends too much", func(testFile) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for range 2*ipfs.MaxBlockSize>>16 + 1 {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}
	}, true},
	{"closes within the answer", func(testFile) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write(make([]byte, 500))
			panic(http.ErrAbortHandler)
		}
	}, false},
	{"has an error", func(testFile) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "out of order", http.StatusInternalServerError)
		}
	}, false},
	{"sends elsewhere", func(testFile) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://192.0.2.1/x", http.StatusFound)
		}
	}, false},
	{"is always busy", func(testFile) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "100000")
			w.WriteHeader(http.StatusTooManyRequests)
		}
	}, false},
	{"has nothing", func(testFile) http.HandlerFunc { return http.NotFound }, false},
	{"sends endless headers", func(testFile) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := range 1000 {
				w.Header().Set(fmt.Sprint("X-", i), "0123456789012345678901234567890123456789")
			}
		}
	}, false},
}

// Beside a peer in order, one that is not harms nobody: all blocks come, and
// who sends something else is banned.
func TestFaults(t *testing.T) {
	for _, tt := range faults {
		for _, bulk := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, bulk=%v", tt.name, bulk), func(t *testing.T) {
				t.Parallel()
				f := newFile(t, 1, 30, 1000)
				reader, good := newNode(t), newNode(t)
				// Who is to be banned answers at once; on a busy machine that may
				// take longer than any patience that others should be given.
				reader.client.stall, reader.client.timeout = time.Minute, time.Minute
				if !tt.ban {
					reader.client.stall, reader.client.timeout = 2*time.Second, 5*time.Second
				}
				good.hold(f, f.leaves...)
				reader.know(f)
				bad := gateway(t, tt.bad(f))
				reader.join(t, bad)
				reader.join(t, good.Host)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				fetch(ctx, t, reader.Exchange, f.want(bulk))
				if tt.ban {
					// It may have been spared, where the good one was quicker.
					only := newFile(t, 2, 1, 1000)
					reader.know(only)
					over := make(chan struct{})
					go func() {
						defer close(over)
						_ = tryFetch(ctx, t, reader.Exchange, only.want(bulk))
					}()
					defer func() { cancel(); <-over }()
					eventually(t, "the peer is banned and gone", func() bool {
						return reader.isBanned(bad.ID()) && reader.Host.Network().Connectedness(bad.ID()) != network.Connected
					})
				} else if reader.isBanned(bad.ID()) {
					t.Error("the peer is banned")
				}
				if reader.isBanned(good.Host.ID()) {
					t.Error("the good peer is banned")
				}
			})
		}
	}
}

// Alone with a peer that is of no use, a fetch ends when its reader leaves, and
// nothing of it is left.
func TestFaultsAlone(t *testing.T) {
	for _, tt := range faults {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFile(t, 1, 5, 1000)
			reader := newNode(t)
			reader.know(f)
			reader.join(t, gateway(t, tt.bad(f)))
			ctx, cancel := context.WithCancel(t.Context())
			got := make(chan error, 1)
			go func() { got <- tryFetch(ctx, t, reader.Exchange, f.want(false)) }()
			eventually(t, "it is asked for", func() bool {
				reader.Exchange.mu.Lock()
				defer reader.Exchange.mu.Unlock()
				return len(reader.wants) == 5
			})
			cancel()
			if err := <-got; err != context.Canceled {
				t.Errorf("Fetch: %v, want context.Canceled", err)
			}
			eventually(t, "no request is under way", func() bool {
				reader.Exchange.mu.Lock()
				defer reader.Exchange.mu.Unlock()
				for _, r := range reader.remotes {
					if r.flights != 0 || r.ahead != 0 {
						return false
					}
				}
				return len(reader.wants) == 0
			})
		})
	}
}

// A peer that was busy, or failed, is asked again.
func TestAskedAgain(t *testing.T) {
	for name, status := range map[string]int{"busy": http.StatusServiceUnavailable, "failed": http.StatusInternalServerError} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFile(t, 1, 3, 1000)
			var asked atomic.Int32
			reader := newNode(t)
			reader.know(f)
			reader.join(t, gateway(t, func(w http.ResponseWriter, r *http.Request) {
				if asked.Add(1) <= 3 {
					w.WriteHeader(status)
					return
				}
				serving(f)(w, r)
			}))
			fetch(t.Context(), t, reader.Exchange, f.want(false))
		})
	}
}

// The best peer goes in the middle of a read.
func TestPeerGoes(t *testing.T) {
	f := newFile(t, 1, 60, 20_000)
	reader, good := newNode(t), newNode(t)
	good.hold(f, f.leaves...)
	reader.know(f)
	var served atomic.Int32
	var goes host.Host
	goes = gateway(t, func(w http.ResponseWriter, r *http.Request) {
		if served.Add(1) == 5 {
			for _, c := range goes.Network().Conns() {
				_ = c.Close()
			}
		}
		serving(f)(w, r)
	})
	reader.join(t, goes, good.Host)
	fetch(t.Context(), t, reader.Exchange, f.want(false))
}

// A second peer is asked for a block that the first does not give in time, and
// the first answer counts.
func TestHedge(t *testing.T) {
	f := newFile(t, 1, 1, 1000)
	var first atomic.Bool
	handler := func(w http.ResponseWriter, r *http.Request) {
		if first.CompareAndSwap(false, true) {
			stuck(w, r)
			return
		}
		serving(f)(w, r)
	}
	reader := newNode(t)
	reader.know(f)
	reader.join(t, gateway(t, handler), gateway(t, handler))
	fetch(t.Context(), t, reader.Exchange, f.want(false))
	if s := reader.Stats(); s.Hedged == 0 {
		t.Errorf("stats: %+v, want one block hedged", s)
	}
}

// What somebody waits for does not wait behind what nobody waits for: it is
// asked for while bulk requests are under way, and no more of those are made
// until it is here.
func TestDemandBeforeBulk(t *testing.T) {
	const leaves = 600
	f, g := newFile(t, 1, leaves, 10_000), newFile(t, 2, 1, 10_000)
	demanded, free := make(chan struct{}), make(chan struct{})
	var bulk atomic.Int32
	var during atomic.Int32
	serveF, serveG := serving(f), serving(g)
	peer := gateway(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ipfs/"+g.leaves[0].Cid().String() {
			<-free
			serveG(w, r)
			return
		}
		select {
		case <-demanded:
			during.Add(1)
		default:
		}
		bulk.Add(1)
		<-demanded // none is answered before the demand read is under way
		serveF(w, r)
	})
	reader := newNode(t)
	reader.know(f)
	reader.know(g)
	reader.join(t, peer)
	done := make(chan error, 1)
	go func() { done <- tryFetch(t.Context(), t, reader.Exchange, f.want(true)) }()
	eventually(t, "bulk requests fill the window", func() bool {
		reader.Exchange.mu.Lock()
		defer reader.Exchange.mu.Unlock()
		for _, r := range reader.remotes {
			return r.bulkFlights > 0 && int(bulk.Load()) == r.bulkFlights
		}
		return false
	})
	demand := make(chan error, 1)
	go func() { demand <- tryFetch(t.Context(), t, reader.Exchange, g.want(false)) }()
	eventually(t, "it is asked for", func() bool {
		reader.Exchange.mu.Lock()
		defer reader.Exchange.mu.Unlock()
		w := reader.wants[g.leaves[0].Cid()]
		if w == nil || len(w.flights) == 0 {
			return false
		}
		w.late.Stop() // being late must not end its precedence while the test looks
		w.isLate = false
		reader.hurry(w)
		return true
	})
	close(demanded)
	eventually(t, "the bulk requests under way are answered", func() bool {
		reader.Exchange.mu.Lock()
		defer reader.Exchange.mu.Unlock()
		for _, r := range reader.remotes {
			return r.bulkFlights == 0
		}
		return false
	})
	if n := during.Load(); n > 0 {
		t.Errorf("%d bulk requests were made while somebody waited", n)
	}
	close(free)
	if err := <-demand; err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := int(bulk.Load()); got < leaves {
		t.Errorf("%d bulk requests for %d blocks", got, leaves)
	}
}

// The rarest part is asked for first.
func TestRarestFirst(t *testing.T) {
	f := newFile(t, 1, 40, 100)
	n := newNode(t)
	n.know(f)
	full := &remote{ctx: t.Context(), wake: make(chan struct{}, 1), files: map[cid.Cid]*holding{}}
	file := n.use(f.root.Cid())
	n.Exchange.mu.Lock()
	defer n.Exchange.mu.Unlock()
	a := &asker{bulk: true, wants: map[*want]bool{}, told: map[*want]bool{}, done: make(chan struct{})}
	h := &holding{answered: true}
	full.files[f.root.Cid()] = h
	for i, b := range f.leaves {
		n.want(a, file, b.Cid())
		h.parts.add(i + 1)
		file.change(i+1, 1)
		if i != 17 { // many have all but this one
			file.change(i+1, 3)
		}
	}
	for range 100 {
		w := n.pick(full, time.Now())
		if w == nil || w.cid != f.leaves[17].Cid() {
			t.Fatal("another part than the rarest is asked for")
		}
	}
	for w := range a.wants {
		n.drop(a, w)
	}
}
