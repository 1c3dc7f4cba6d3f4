package direct

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
)

// What is held is told, and got: each block once, from whoever holds it.
func TestFetch(t *testing.T) {
	f := newFile(t, 1, 300, 5000)
	reader, a, b := newNode(t), newNode(t), newNode(t)
	a.hold(f, f.leaves[:200]...)
	b.hold(f, f.leaves[100:]...)
	reader.join(t, a.Host, b.Host)

	fetch(t.Context(), t, reader.Exchange, ipfs.Want{CIDs: []cid.Cid{f.root.Cid()}, Root: f.root.Cid()})
	reader.know(f)
	for _, bulk := range []bool{false, true} {
		t.Run(fmt.Sprint("bulk=", bulk), func(t *testing.T) {
			eventually(t, "all of the last fetch is stored", func() bool {
				reader.Exchange.mu.Lock()
				defer reader.unlock()
				return len(reader.landing) == 0
			})
			reader.without(f.leaves...)
			before := a.reads(f) + b.reads(f)
			fetch(t.Context(), t, reader.Exchange, f.want(bulk))
			s := reader.Stats() // on a busy machine a peer can be late
			if got := a.reads(f) + b.reads(f) - before; got < 300 || got > 300+int(s.Hedged+s.Failed) {
				t.Errorf("%d blocks were read to serve 300; %d were late, %d requests failed", got, s.Hedged, s.Failed)
			}
		})
		if s := reader.Stats(); s.BlocksReceived < 301 || s.BytesReceived < 300*5000 {
			t.Errorf("stats: %+v", s)
		}
	}
	if s := a.Stats(); s.BlocksSent == 0 || s.BytesSent < s.BlocksSent*100 {
		t.Errorf("stats of one who serves: %+v", s)
	}
}

// A node serves what it has just fetched: a chain of nodes, of which each knows
// the next alone.
func TestServesWhileFetching(t *testing.T) {
	f := newFile(t, 1, 50, 5000)
	nodes := []*node{newNode(t), newNode(t), newNode(t)}
	for i, n := range nodes {
		n.know(f)
		if i > 0 {
			n.join(t, nodes[i-1].Host)
		}
	}
	// The last asks before anyone has anything.
	var wg sync.WaitGroup
	for _, n := range nodes[1:] {
		wg.Go(func() { fetch(t.Context(), t, n.Exchange, f.want(true)) })
	}
	nodes[0].hold(f, f.leaves...)
	wg.Wait()
	if got := nodes[0].reads(f); got != 50 {
		t.Errorf("the first served %d blocks, want each of 50 once, to the second", got)
	}
}

// A block that is removed is told of, and is asked for elsewhere.
func TestRemoved(t *testing.T) {
	f := newFile(t, 1, 2, 100)
	reader, a, b := newNode(t), newNode(t), newNode(t)
	a.hold(f, f.leaves...)
	b.hold(f)
	reader.know(f)
	reader.join(t, a.Host, b.Host)
	one := func(i int) ipfs.Want { return ipfs.Want{CIDs: []cid.Cid{f.leaves[i].Cid()}, Root: f.root.Cid()} }
	fetch(t.Context(), t, reader.Exchange, one(0))

	a.mu.Lock()
	delete(a.blocks, hash(f.leaves[1].Cid()))
	a.mu.Unlock()
	a.Removed(f.leaves[1].Cid())
	lost := make(chan cid.Cid, 1)
	got := make(chan error, 1)
	go func() {
		got <- reader.Fetch(t.Context(), one(1), func(c cid.Cid, data []byte) error { return ipfs.Verify(c, data) },
			func(c cid.Cid) { lost <- c })
	}()
	if c := <-lost; c != f.leaves[1].Cid() {
		t.Errorf("%s is lost", c)
	}
	b.put(f.leaves[1])
	b.Arrived(f.leaves[1], nil) // b has it now, and tells
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// What nobody has is lost at once, also when there is nobody; and comes when
// somebody comes who has it.
func TestLost(t *testing.T) {
	f := newFile(t, 1, 20, 100)
	reader, other := newNode(t), newNode(t)
	var lost atomic.Int32
	got := make(chan error, 1)
	go func() {
		got <- reader.Fetch(t.Context(), f.want(false), func(c cid.Cid, data []byte) error { return ipfs.Verify(c, data) },
			func(cid.Cid) { lost.Add(1) })
	}()
	eventually(t, "all are lost", func() bool { return lost.Load() == 20 })
	other.hold(f, f.leaves...)
	reader.join(t, other.Host)
	if err := <-got; err != nil || lost.Load() != 20 {
		t.Errorf("%v; lost %d times", err, lost.Load())
	}
}

func TestCancel(t *testing.T) {
	f := newFile(t, 1, 1, 100)
	asked, left := make(chan struct{}, 10), make(chan struct{}, 10)
	open := make(chan struct{})
	slow := gateway(t, func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		select {
		case <-r.Context().Done():
			left <- struct{}{}
		case <-open:
			serving(f)(w, r)
		}
	})
	reader := newNode(t)
	reader.join(t, slow)
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- tryFetch(ctx, t, reader.Exchange, f.want(false)) }()
	<-asked
	go func() { second <- tryFetch(t.Context(), t, reader.Exchange, f.want(false)) }()
	eventually(t, "the second waits for the same", func() bool {
		reader.Exchange.mu.Lock()
		defer reader.Exchange.mu.Unlock()
		w := reader.wants[f.leaves[0].Cid()]
		return w != nil && len(w.askers) == 2
	})
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	close(open)
	if err := <-second; err != nil {
		t.Errorf("the other one: %v", err)
	}

	// Nobody waits any more: the request is given up.
	stuck := gateway(t, func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
		left <- struct{}{}
	})
	g := newFile(t, 2, 1, 100)
	lonely := newNode(t)
	lonely.join(t, stuck)
	ctx, cancel = context.WithCancel(t.Context())
	go func() { first <- tryFetch(ctx, t, lonely.Exchange, g.want(false)) }()
	<-asked
	cancel()
	<-left
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	lonely.Exchange.mu.Lock()
	defer lonely.Exchange.mu.Unlock()
	if len(lonely.wants) != 0 || lonely.urgent != 0 {
		t.Errorf("%d wants are left, %d urgent", len(lonely.wants), lonely.urgent)
	}
}

func TestErrorOfGive(t *testing.T) {
	f := newFile(t, 1, 40, 100)
	reader, a := newNode(t), newNode(t)
	a.hold(f, f.leaves...)
	reader.know(f)
	reader.join(t, a.Host)
	mine := errors.New("mine")
	err := reader.Fetch(t.Context(), f.want(false), func(cid.Cid, []byte) error { return mine }, func(cid.Cid) {})
	if err != mine {
		t.Errorf("Fetch: %v, want what give said", err)
	}
	fetch(t.Context(), t, reader.Exchange, f.want(false))
}

// Blocks that come another way end the wait.
func TestArrived(t *testing.T) {
	b := blockstest.Random(t, 1, 100)
	n := newNode(t)
	got := make(chan error, 1)
	lost := make(chan struct{})
	go func() {
		got <- n.Fetch(t.Context(), ipfs.Want{CIDs: []cid.Cid{b.Cid()}},
			func(c cid.Cid, data []byte) error { return ipfs.Verify(c, data) }, func(cid.Cid) { close(lost) })
	}()
	<-lost
	n.Arrived(b, nil)
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// Who waits for a block does not wait until it is stored, a Fetch in bulk does,
// and who asks for it meanwhile is given it, and asks nobody.
func TestStored(t *testing.T) {
	f := newFile(t, 1, 1, 5000)
	reader, a := newNode(t), newNode(t)
	a.hold(f, f.leaves...)
	reader.know(f)
	store := make(chan struct{})
	storing := make(chan struct{}, 1)
	keep := reader.Keep
	reader.Keep = func(b blocks.Block) {
		storing <- struct{}{}
		<-store
		keep(b)
	}
	reader.join(t, a.Host)
	bulk := make(chan struct{})
	go func() {
		defer close(bulk)
		fetch(t.Context(), t, reader.Exchange, f.want(true))
	}()
	<-storing
	fetch(t.Context(), t, reader.Exchange, f.want(false))
	mine := errors.New("mine")
	if err := reader.Fetch(t.Context(), f.want(false), func(cid.Cid, []byte) error { return mine }, func(cid.Cid) {}); !errors.Is(err, mine) {
		t.Errorf("an error of give: %v", err)
	}
	select {
	case <-bulk:
		t.Error("a Fetch in bulk ended before its block was stored")
	default:
	}
	given, late := make(chan struct{}), make(chan error)
	go func() {
		late <- reader.Fetch(t.Context(), f.want(true), func(cid.Cid, []byte) error {
			close(given)
			return nil
		}, func(cid.Cid) {})
	}()
	<-given
	close(store)
	<-bulk
	if err := <-late; err != nil {
		t.Error(err)
	}
	if !reader.Holds(f.leaves[0].Cid()) {
		t.Error("it ended, and the block is not stored")
	}
	fetch(t.Context(), t, reader.Exchange, f.want(false)) // stored, since who wants it looked
	if n := a.reads(f); n != 1 {
		t.Errorf("the block was asked for %d times", n)
	}
	// And the other way: first who waits.
	store = make(chan struct{})
	g := newFile(t, 2, 1, 5000)
	a.hold(g, g.leaves...)
	reader.know(g)
	fetch(t.Context(), t, reader.Exchange, g.want(false))
	<-storing
	close(store)
}

func TestClose(t *testing.T) {
	b := blockstest.Random(t, 1, 100)
	n := newNode(t)
	got := make(chan error, 1)
	lost := make(chan struct{})
	go func() {
		got <- n.Fetch(t.Context(), ipfs.Want{CIDs: []cid.Cid{b.Cid()}}, func(cid.Cid, []byte) error { return nil }, func(cid.Cid) { close(lost) })
	}()
	<-lost
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if err := <-got; !errors.Is(err, errClosed) {
		t.Errorf("Fetch: %v, want errClosed", err)
	}
	if err := n.Fetch(t.Context(), ipfs.Want{CIDs: []cid.Cid{b.Cid()}}, nil, func(cid.Cid) {}); !errors.Is(err, errClosed) {
		t.Errorf("Fetch after Close: %v, want errClosed", err)
	}
}

// What is known of a file is looked up once, not at every read: it costs a look
// at the disk for each of its leaves.
func TestLooksUpOnce(t *testing.T) {
	f := newFile(t, 1, 100, 100)
	reader, a := newNode(t), newNode(t)
	a.hold(f, f.leaves...)
	reader.know(f)
	reader.join(t, a.Host)
	for _, b := range f.leaves {
		fetch(t.Context(), t, reader.Exchange, ipfs.Want{CIDs: []cid.Cid{b.Cid()}, Root: f.root.Cid()})
	}
	if reader.opened > 1 || a.opened > 1 {
		t.Errorf("for 100 reads the file was looked up %d times by who reads, %d by who serves", reader.opened, a.opened)
	}
}

// Many fetches at once, of overlapping parts, in bulk and not, some called off.
func TestConcurrent(t *testing.T) {
	f := newFile(t, 1, 200, 3000)
	reader, a, b, c := newNode(t), newNode(t), newNode(t), newNode(t)
	a.hold(f, f.leaves[:150]...)
	b.hold(f, f.leaves[50:]...)
	c.hold(f, f.leaves...)
	reader.know(f)
	reader.join(t, a.Host, b.Host, c.Host)
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			w := f.want(i%2 == 0)
			rand.Shuffle(len(w.CIDs), func(i, j int) { w.CIDs[i], w.CIDs[j] = w.CIDs[j], w.CIDs[i] })
			w.CIDs = w.CIDs[:100]
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if i%4 == 3 {
				time.AfterFunc(time.Duration(i)*time.Millisecond, cancel)
			}
			if err := tryFetch(ctx, t, reader.Exchange, w); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	reader.Exchange.mu.Lock()
	defer reader.Exchange.mu.Unlock()
	if len(reader.wants) != 0 || reader.urgent != 0 {
		t.Errorf("%d wants are left, %d urgent", len(reader.wants), reader.urgent)
	}
	for _, r := range reader.remotes {
		if r.inBulk < 0 || r.ahead < 0 || r.flights < 0 {
			t.Errorf("peer %s: %d flights, %d bytes, %d in bulk", r.id, r.flights, r.ahead, r.inBulk)
		}
	}
}
