package direct

import (
	"context"
	"slices"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Bounds on what is asked of one peer at once, in requests.
const (
	maxFlights     = 128
	maxBulkFlights = 96
)

// Bounds on what is asked of all peers at once in bulk, requests and bytes:
// each request costs memory, and more than this no link needs.
const (
	maxAllBulk      = 384
	maxAllBulkBytes = 64 << 20
)

// A peer that fails is left alone for a time, twice as long each time in a row.
const (
	firstRest = 250 * time.Millisecond
	lastRest  = 15 * time.Second
)

// For how long a block waits for a peer to tell what it holds before it is
// looked for elsewhere: one that somebody waits for, and one that nobody does.
const (
	answerTime     = 500 * time.Millisecond
	bulkAnswerTime = 10 * answerTime
)

// answerTime is that of w.
func (w *want) answerTime() time.Duration {
	if w.waited > 0 {
		return answerTime
	}
	return bulkAnswerTime
}

// remote is a connected peer that serves blocks. Exchange.mu guards it.
type remote struct {
	id     peer.ID
	ctx    context.Context // ends with the connection
	cancel context.CancelFunc
	meter  meter

	flights       int // requests under way
	bulkFlights   int
	ahead, inBulk int // bytes of these; of those in bulk

	failures int
	rest     time.Time // until when it is left alone

	tells bool                 // it speaks haveProtocol
	wake  chan struct{}        // of its watch
	files map[cid.Cid]*holding // what it holds of the files that matter
}

// holding is what a peer holds of a file.
type holding struct {
	parts set
	// Of a peer that does not tell all is assumed, until it proves not to have
	// a part.
	all  bool
	gone set
	// answered: the peer has told. Until then parts says nothing. since is when
	// it was asked.
	answered bool
	since    time.Time
}

func (h *holding) has(part int) bool { return h.word(part>>6)&(1<<(part&63)) != 0 }

func (h *holding) word(w int) uint64 {
	have := h.parts.word(w)
	if h.all {
		have = ^uint64(0)
	}
	return have &^ h.gone.word(w)
}

// peers follows the host's connections until ctx ends.
func (x *Exchange) peers(events event.Subscription) {
	for _, id := range x.Host.Network().Peers() {
		x.look(id)
	}
	for e := range events.Out() {
		switch e := e.(type) {
		case event.EvtPeerIdentificationCompleted:
			x.look(e.Peer)
		case event.EvtPeerIdentificationFailed:
			x.unknown(e.Peer)
		case event.EvtPeerProtocolsUpdated:
			x.look(e.Peer)
		case event.EvtPeerConnectednessChanged:
			if e.Connectedness != network.Connected {
				x.left(e.Peer)
			} else {
				x.look(e.Peer)
			}
		}
	}
}

// look takes a connected peer in that serves blocks, once that is known.
func (x *Exchange) look(id peer.ID) {
	protocols, err := x.Host.Peerstore().GetProtocols(id)
	if err != nil || x.Host.Network().Connectedness(id) != network.Connected {
		return
	}
	x.mu.Lock()
	defer x.unlock()
	if len(protocols) == 0 { // it is not known yet
		x.strangers[id] = true
		return
	}
	delete(x.strangers, id)
	if x.remotes[id] != nil {
		return
	}
	if !slices.Contains(protocols, httpProtocol) {
		x.requeue() // there is one less to wait for
		x.dispatch()
		return
	}
	r := &remote{
		id: id, tells: slices.Contains(protocols, haveProtocol), wake: make(chan struct{}, 1),
		files: make(map[cid.Cid]*holding),
	}
	r.meter.window = firstWindow
	r.ctx, r.cancel = context.WithCancel(x.ctx)
	x.remotes[id] = r
	for _, f := range x.files {
		x.ask(r, f)
	}
	if r.tells {
		w := &watch{
			host: x.Host, peer: id, wake: r.wake,
			wanted: func() []cid.Cid { return x.watched(r) },
			heard:  func(m message) bool { return x.heard(r, m) },
			lost:   func() { x.silent(r) },
		}
		x.done.Go(func() { w.run(r.ctx) })
	}
	x.requeue()
	x.dispatch()
}

// unknown no longer waits for a peer to say what it speaks.
func (x *Exchange) unknown(id peer.ID) {
	x.mu.Lock()
	defer x.unlock()
	delete(x.strangers, id)
}

// left forgets a peer whose last connection has ended.
func (x *Exchange) left(id peer.ID) {
	x.mu.Lock()
	defer x.unlock()
	delete(x.strangers, id)
	r := x.remotes[id]
	if r == nil {
		return
	}
	delete(x.remotes, id)
	r.cancel()
	for root, h := range r.files {
		x.count(x.files[root], h, -1)
	}
	x.requeue()
	x.dispatch()
}

// ask begins to watch what r holds of f.
func (x *Exchange) ask(r *remote, f *file) {
	if r.files[f.root] != nil || len(r.files) >= maxWatched {
		return
	}
	r.files[f.root] = &holding{all: !r.tells, answered: !r.tells, since: time.Now()}
	poke(r.wake)
}

// forget ends that.
func (x *Exchange) forget(r *remote, f *file) {
	delete(r.files, f.root)
	poke(r.wake)
}

func (x *Exchange) watched(r *remote) []cid.Cid {
	x.mu.Lock()
	defer x.unlock()
	roots := make([]cid.Cid, 0, len(r.files))
	for root := range r.files {
		roots = append(roots, root)
	}
	return roots
}

// heard takes in what r tells. It reports whether that keeps the rules.
func (x *Exchange) heard(r *remote, m message) bool {
	x.mu.Lock()
	defer x.unlock()
	f, h := x.files[m.root], r.files[m.root]
	if f == nil || h == nil {
		return true // no longer of interest
	}
	limit := maxParts
	if f.leaves != nil {
		limit = len(f.leaves)
	}
	first := !h.answered
	h.answered = true
	for _, s := range m.spans {
		if s.last > limit {
			return false
		}
		for part := s.first; part <= s.last; part++ {
			if m.kind == kindGone {
				if h.parts.remove(part) {
					f.change(part, -1)
				}
				continue
			}
			h.gone.remove(part)
			if h.parts.add(part) {
				f.change(part, 1)
				x.offered(r, f, part)
			}
		}
	}
	if first {
		x.requeue()
	}
	x.dispatch()
	return true
}

// silent forgets what r told: its stream has ended.
func (x *Exchange) silent(r *remote) {
	x.mu.Lock()
	defer x.unlock()
	if x.remotes[r.id] != r {
		return
	}
	for root, h := range r.files {
		x.count(x.files[root], h, -1)
		r.files[root] = &holding{since: time.Now()}
	}
	x.requeue()
	x.dispatch()
}

// count adds what a holding has to the number of holders of each part.
func (x *Exchange) count(f *file, h *holding, by int) {
	if f == nil {
		return
	}
	for s := range h.parts.spans(nil) {
		for part := s.first; part <= s.last; part++ {
			f.change(part, by)
		}
	}
}

// failed notes that a request to r went wrong, and leaves it alone for a while.
// What was asked before that while began and goes wrong too is the same fault.
func (x *Exchange) failed(r *remote, now time.Time, atLeast time.Duration) {
	if now.Before(r.rest) {
		return
	}
	rest := max(min(firstRest<<min(r.failures, 8), lastRest), atLeast)
	r.failures++
	if until := now.Add(rest); until.After(r.rest) {
		r.rest = until
	}
	x.dispatchAt(r.rest)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
