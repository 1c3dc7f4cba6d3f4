package discovery

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// Bounds of announcing.
const (
	maxRoots         = 1 << 16
	announcesAtOnce  = 4
	firstRetry       = 2 * time.Second
	lastRetry        = 5 * time.Minute
	afterPeerArrives = time.Second // it has told then whether it is of the DHT
)

// ErrTooManyRoots is returned by Provide when 65,536 roots are announced.
var ErrTooManyRoots = errors.New("too many roots are announced")

// announcer says again and again what we have, in the background: at first, soon
// again after a failure or when a peer arrives, then ever more rarely, for a
// young network does not know yet who keeps the record best.
type announcer struct {
	say          func(ctx context.Context, root cid.Cid) error
	first, every time.Duration
	log          *slog.Logger

	net    notifier
	notify *network.NotifyBundle
	cancel context.CancelFunc
	done   sync.WaitGroup
	wake   chan struct{}

	mu     sync.Mutex
	roots  map[cid.Cid]*announcement
	queue  dueQueue
	failed int // announcements whose last attempt failed
}

// notifier is what the announcer needs of a [network.Network].
type notifier interface {
	Notify(network.Notifiee)
	StopNotify(network.Notifiee)
}

type announcement struct {
	root     cid.Cid
	due      time.Time
	said     int // how often it worked
	failures int // since then
	index    int // in the queue; -1: under way, or withdrawn
}

func startAnnouncer(say func(context.Context, cid.Cid) error, first, every time.Duration, net notifier, log *slog.Logger) *announcer {
	ctx, cancel := context.WithCancel(context.Background())
	a := &announcer{
		say: say, first: first, every: every, log: log,
		net: net, cancel: cancel, wake: make(chan struct{}, 1),
		roots: make(map[cid.Cid]*announcement),
	}
	a.notify = &network.NotifyBundle{ConnectedF: func(network.Network, network.Conn) { a.peerArrived() }}
	net.Notify(a.notify)
	a.done.Go(func() { a.run(ctx) })
	return a
}

func (a *announcer) stop() {
	a.net.StopNotify(a.notify)
	a.cancel()
	a.done.Wait()
}

// provide is Routing's Provide.
func (a *announcer) provide(root cid.Cid) error {
	if err := ipfs.CheckCID(root); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.roots[root] != nil {
		return nil
	}
	if len(a.roots) >= maxRoots {
		return fmt.Errorf("discovery: %s: %w", root, ErrTooManyRoots)
	}
	x := &announcement{root: root, due: time.Now()}
	a.roots[root] = x
	heap.Push(&a.queue, x)
	a.poke()
	return nil
}

// withdraw is Routing's Withdraw.
func (a *announcer) withdraw(root cid.Cid) {
	a.mu.Lock()
	defer a.mu.Unlock()
	x := a.roots[root]
	if x == nil {
		return
	}
	delete(a.roots, root)
	if x.failures > 0 {
		a.failed--
	}
	if x.index >= 0 {
		heap.Remove(&a.queue, x.index)
	}
}

func (a *announcer) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// peerArrived has what failed said soon again.
func (a *announcer) peerArrived() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failed == 0 {
		return
	}
	soon := time.Now().Add(afterPeerArrives)
	for _, x := range a.queue {
		if x.failures > 0 && x.due.After(soon) {
			x.due = soon
		}
	}
	heap.Init(&a.queue)
	a.poke()
}

// next takes what is due out of the queue, or returns how long to wait.
func (a *announcer) next() (*announcement, time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) == 0 {
		return nil, a.every
	}
	if wait := time.Until(a.queue[0].due); wait > 0 {
		return nil, wait
	}
	return heap.Pop(&a.queue).(*announcement), 0
}

func (a *announcer) run(ctx context.Context) {
	var workers sync.WaitGroup
	defer workers.Wait()
	free := make(chan struct{}, announcesAtOnce)
	for {
		x, wait := a.next()
		if x == nil {
			t := time.NewTimer(wait)
			select {
			case <-ctx.Done():
				t.Stop()
				return
			case <-t.C:
			case <-a.wake:
				t.Stop()
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case free <- struct{}{}:
		}
		workers.Go(func() {
			a.result(x, a.say(ctx, x.root))
			<-free
		})
	}
}

// result puts an announcement back for the next time.
func (a *announcer) result(x *announcement, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.roots[x.root] != x {
		return // it was withdrawn
	}
	if err != nil {
		if x.failures == 0 {
			a.failed++
		}
		x.due = time.Now().Add(doubled(firstRetry, x.failures, lastRetry))
		x.failures++
		a.log.Debug("a root could not be announced yet", "root", x.root.String(), "err", err)
	} else {
		if x.failures > 0 {
			a.failed--
		}
		x.due = time.Now().Add(doubled(a.first, x.said, a.every))
		x.failures = 0
		x.said++
	}
	heap.Push(&a.queue, x)
	a.poke()
}

// doubled returns first, doubled so often, up to last.
func doubled(first time.Duration, times int, last time.Duration) time.Duration {
	for range times {
		if first >= last {
			break
		}
		first *= 2
	}
	return min(first, last)
}

// dueQueue is a heap of announcements by when they are due.
type dueQueue []*announcement

func (q dueQueue) Len() int           { return len(q) }
func (q dueQueue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }

func (q dueQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push implements [heap.Interface].
func (q *dueQueue) Push(v any) {
	x := v.(*announcement)
	x.index = len(*q)
	*q = append(*q, x)
}

// Pop implements [heap.Interface].
func (q *dueQueue) Pop() any {
	old := *q
	x := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	x.index = -1
	return x
}
