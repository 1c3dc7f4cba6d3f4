package direct

import (
	"bufio"
	"bytes"
	"context"
	"sync/atomic"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
)

// watcherOf opens a stream of haveProtocol to n by hand.
func watcherOf(t *testing.T, n *node) (network.Stream, *bufio.Reader) {
	t.Helper()
	h := newHost(t)
	if err := h.Connect(t.Context(), peer.AddrInfo{ID: n.Host.ID(), Addrs: n.Host.Addrs()}); err != nil {
		t.Fatal(err)
	}
	s, err := h.NewStream(t.Context(), n.Host.ID(), haveProtocol)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return s, bufio.NewReader(s)
}

func send(t *testing.T, s network.Stream, b []byte) {
	t.Helper()
	if _, err := s.Write(b); err != nil {
		t.Fatal(err)
	}
}

// parts reads messages of a file until its holder is known to have n parts.
func parts(t *testing.T, in *bufio.Reader, have *set, n int) {
	t.Helper()
	for {
		m, err := readMessage(in)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range m.spans {
			for i := s.first; i <= s.last; i++ {
				if m.kind == kindHave {
					have.add(i)
				} else {
					have.remove(i)
				}
			}
		}
		if have.count() == n {
			return
		}
	}
}

func TestTell(t *testing.T) {
	f := newFile(t, 1, 100, 10)
	n := newNode(t)
	s, in := watcherOf(t, n)
	// Of an unknown file nothing is held, and that is told at once.
	send(t, s, message{kind: kindWatch, root: f.root.Cid()}.append(nil))
	var have set
	parts(t, in, &have, 0)
	n.hold(f) // the root alone
	parts(t, in, &have, 1)
	// The file is opened here, so its parts are known from now on.
	shelf := n.inventory.open(f.root.Cid())
	defer n.inventory.release(shelf)
	n.hold(f, f.leaves[:70]...)
	parts(t, in, &have, 71)
	n.Removed(f.leaves[3].Cid(), f.root.Cid())
	parts(t, in, &have, 69)
	if have.has(0) || have.has(4) || !have.has(5) || have.has(71) {
		t.Errorf("told: %v", have)
	}
	// A file that is wanted no longer is not told of; another is.
	send(t, s, message{kind: kindUnwatch, root: f.root.Cid()}.append(nil))
	g := newFile(t, 2, 3, 10)
	n.hold(g, g.leaves...)
	send(t, s, message{kind: kindWatch, root: g.root.Cid()}.append(nil))
	m, err := readMessage(in)
	if err != nil || m.root != g.root.Cid() || len(m.spans) != 1 || m.spans[0] != (span{0, 3}) {
		t.Errorf("%+v, %v; want all parts of the second file", m, err)
	}
}

// Who breaks the rules loses the stream, not more.
func TestBrokenRules(t *testing.T) {
	root := blockstest.Random(t, 1, 10).Cid()
	n := newNode(t)
	var many []byte
	for i := range maxWatched + 1 {
		many = message{kind: kindWatch, root: blockstest.Random(t, uint64(i), 10).Cid()}.append(many)
	}
	for name, b := range map[string][]byte{
		"have from who watches": message{kind: kindHave, root: root}.append(nil),
		"garbage":               bytes.Repeat([]byte("GET / HTTP/1.1\r\n\r\n"), 10),
		"too many files":        many,
	} {
		t.Run(name, func(t *testing.T) {
			s, in := watcherOf(t, n)
			send(t, s, b)
			for {
				if _, err := readMessage(in); err != nil {
					if ne, ok := err.(interface{ Timeout() bool }); ok && ne.Timeout() {
						t.Error("the stream stays open")
					}
					break
				}
			}
		})
	}
	// It goes on telling others.
	s, in := watcherOf(t, n)
	send(t, s, message{kind: kindWatch, root: root}.append(nil))
	if _, err := readMessage(in); err != nil {
		t.Error(err)
	}
}

// A peer that tells nonsense loses its stream; blocks come all the same.
func TestTellsNonsense(t *testing.T) {
	f := newFile(t, 1, 5, 100)
	liar := gateway(t, serving(f))
	liar.SetStreamHandler(haveProtocol, func(s network.Stream) {
		defer s.Close()
		in := bufio.NewReader(s)
		if _, err := readMessage(in); err != nil {
			return
		}
		_, _ = s.Write(message{kind: kindHave, root: f.root.Cid(), spans: []span{{0, 77}}}.append(nil)) // it has 5
		_, _ = readMessage(in)
	})
	reader, good := newNode(t), newNode(t)
	reader.Keep = func(blocks.Block) {} // all is fetched twice
	reader.know(f)
	good.hold(f, f.leaves...)
	reader.join(t, liar, good.Host)
	fetch(t.Context(), t, reader.Exchange, f.want(false))
	fetch(t.Context(), t, reader.Exchange, f.want(true))
}

// A peer that never tells is waited for once, and does not keep the exchange
// busy after that: no timer is set for a time that has passed.
func TestNeverTells(t *testing.T) {
	f := newFile(t, 1, 3, 100)
	mute := gateway(t, serving(f))
	mute.SetStreamHandler(haveProtocol, func(s network.Stream) {
		_, _ = readMessage(bufio.NewReader(s))
	})
	reader := newNode(t)
	reader.know(f)
	reader.join(t, mute)
	lost := make(chan struct{}, 10)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = reader.Fetch(ctx, f.want(false), func(cid.Cid, []byte) error { return nil }, func(cid.Cid) { lost <- struct{}{} })
	}()
	for range f.leaves {
		<-lost
	}
	reader.Exchange.mu.Lock()
	reader.requeue()
	reader.dispatch()
	if at := reader.timerAt; !at.IsZero() && at.Before(time.Now()) {
		t.Errorf("the next look is set for %v ago", time.Since(at))
	}
	reader.unlock()
	cancel()
	<-done
}

// Blocks that nobody waits for wait longer for a peer that tells late, as one
// does that has a lot to do, before they are looked for elsewhere.
func TestTellsLate(t *testing.T) {
	f := newFile(t, 1, 3, 100)
	for _, bulk := range []bool{false, true} {
		late := gateway(t, serving(f))
		late.SetStreamHandler(haveProtocol, func(s network.Stream) {
			defer s.Close()
			in := bufio.NewReader(s)
			if _, err := readMessage(in); err != nil {
				return
			}
			time.Sleep(2 * answerTime)
			_, _ = s.Write(message{kind: kindHave, root: f.root.Cid(), spans: []span{{0, 3}}}.append(nil))
			_, _ = readMessage(in)
		})
		reader := newNode(t)
		reader.know(f)
		reader.join(t, late)
		var lost atomic.Int32
		if err := reader.Fetch(t.Context(), f.want(bulk), func(cid.Cid, []byte) error { return nil }, func(cid.Cid) { lost.Add(1) }); err != nil {
			t.Error(err)
		}
		if n := lost.Load(); (n > 0) == bulk {
			t.Errorf("bulk=%v: %d blocks were called lost", bulk, n)
		}
	}
}
