package node

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
)

// Times of the peering, for each peer.
const (
	dialTimeout = 10 * time.Second
	firstRetry  = 250 * time.Millisecond
	lastRetry   = 15 * time.Second
	// A peer that was only found is given up after so long; who finds it again
	// says so again.
	giveUpFound = 10 * time.Minute
	maxPeered   = 4096
)

// peering keeps the host connected with the peers that it was told: the
// configured ones that have an address, and those found by name or on the local
// network. It dials at once, when a connection is lost, when somebody needs
// blocks (wake), and else ever more rarely.
type peering struct {
	host   host.Host
	log    *slog.Logger
	notify *network.NotifyBundle
	ctx    context.Context
	cancel context.CancelFunc
	done   sync.WaitGroup
	losses atomic.Int64 // connections that ended, of any peer

	mu      sync.Mutex
	targets map[peer.ID]*target
}

// target is one peer to be connected with.
type target struct {
	id     peer.ID
	wake   chan struct{}
	cancel context.CancelFunc
	addrs  map[string][]ma.Multiaddr // by how they are known; under peering.mu
}

func startPeering(h host.Host, peers []peer.AddrInfo, log *slog.Logger) *peering {
	p := &peering{host: h, log: log, targets: make(map[peer.ID]*target)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	for _, info := range peers {
		p.keep(info, knownConfigured)
	}
	p.notify = &network.NotifyBundle{DisconnectedF: func(_ network.Network, c network.Conn) {
		p.losses.Add(1)
		p.mu.Lock()
		defer p.mu.Unlock()
		if t := p.targets[c.RemotePeer()]; t != nil {
			poke(t.wake)
		}
	}}
	h.Network().Notify(p.notify)
	return p
}

func (p *peering) stop() {
	p.host.Network().StopNotify(p.notify)
	p.cancel()
	p.done.Wait()
}

// keep has a peer connected from now on, at these addresses and those known in
// other ways.
func (p *peering) keep(info peer.AddrInfo, how string) {
	if info.ID == p.host.ID() || len(info.Addrs) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.targets[info.ID]
	if t == nil {
		if len(p.targets) >= maxPeered && how != knownConfigured || p.ctx.Err() != nil {
			return
		}
		t = &target{id: info.ID, wake: make(chan struct{}, 1), addrs: make(map[string][]ma.Multiaddr)}
		p.targets[info.ID] = t
		var ctx context.Context
		ctx, t.cancel = context.WithCancel(p.ctx)
		p.done.Go(func() { p.run(ctx, t) })
	}
	t.addrs[how] = info.Addrs
	poke(t.wake)
}

// forget drops the addresses that were known in one way. A connection stays,
// but without another way it is not made again.
func (p *peering) forget(id peer.ID, how string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := p.targets[id]; t != nil {
		delete(t.addrs, how)
		if len(t.addrs) == 0 {
			delete(p.targets, id)
			t.cancel()
		}
	}
}

// wake has all peers that are not connected dialed now.
func (p *peering) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.targets {
		poke(t.wake)
	}
}

func poke(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

func (p *peering) connected(id peer.ID) bool {
	return p.host.Network().Connectedness(id) == network.Connected
}

// run is the loop for one peer.
func (p *peering) run(ctx context.Context, t *target) {
	wait, quiet, seen := firstRetry, false, time.Now()
	for ctx.Err() == nil {
		if p.connected(t.id) {
			seen = time.Now()
		} else {
			addrs := p.addrs(t, time.Since(seen) > giveUpFound)
			if addrs == nil {
				return // given up
			}
			err := p.dial(ctx, peer.AddrInfo{ID: t.id, Addrs: addrs})
			switch {
			case err == nil:
				p.log.Info("peer connected", "peer", t.id.String())
				wait, quiet, seen = firstRetry, false, time.Now()
			case ctx.Err() == nil && !quiet:
				p.log.Warn("peer cannot be reached; trying on", "peer", t.id.String(), "addrs", addrs, "err", err)
				quiet = true
			}
		}
		// Two nodes that dial each other at once may lose both connections:
		// half of the time is random.
		timer := time.NewTimer(wait/2 + rand.N(wait))
		wait = min(2*wait, lastRetry)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-t.wake:
			// Whoever wakes us often does not make us dial often.
			sleep(ctx, firstRetry/2+rand.N(firstRetry/2))
			if p.connected(t.id) {
				break
			}
			wait = firstRetry
		}
		timer.Stop()
	}
}

// addrs returns all addresses of a target. One that could not be reached for
// long loses those that mDNS said, for mDNS does not say when they are gone; if
// no others are left, the target goes.
func (p *peering) addrs(t *target, long bool) (out []ma.Multiaddr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if long {
		delete(t.addrs, knownMDNS)
	}
	for _, a := range t.addrs {
		out = append(out, a...)
	}
	if out == nil && p.targets[t.id] == t {
		delete(p.targets, t.id)
		t.cancel()
	}
	return out
}

func (p *peering) dial(ctx context.Context, info peer.AddrInfo) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if s, ok := p.host.Network().(*swarm.Swarm); ok {
		s.Backoff().Clear(info.ID) // the swarm's own waits longer than ours
	}
	return p.host.Connect(ctx, info)
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
