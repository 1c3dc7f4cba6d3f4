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
)

// Times of the peering, for each configured peer.
const (
	dialTimeout = 10 * time.Second
	firstRetry  = 250 * time.Millisecond
	lastRetry   = 15 * time.Second
)

// peering keeps the host connected with the configured peers that have an
// address: it dials at once, when a connection is lost, when somebody needs
// blocks (wake), and else ever more rarely.
type peering struct {
	host   host.Host
	log    *slog.Logger
	notify *network.NotifyBundle
	cancel context.CancelFunc
	done   sync.WaitGroup
	wakers []chan struct{}
	losses atomic.Int64 // connections that ended, of any peer
}

func startPeering(h host.Host, peers []peer.AddrInfo, log *slog.Logger) *peering {
	ctx, cancel := context.WithCancel(context.Background())
	p := &peering{host: h, log: log, cancel: cancel}
	byID := make(map[peer.ID]chan struct{})
	for _, info := range peers {
		if info.ID == h.ID() || len(info.Addrs) == 0 {
			continue
		}
		wake := make(chan struct{}, 1)
		byID[info.ID] = wake
		p.wakers = append(p.wakers, wake)
		p.done.Go(func() { p.keep(ctx, info, wake) })
	}
	p.notify = &network.NotifyBundle{DisconnectedF: func(_ network.Network, c network.Conn) {
		p.losses.Add(1)
		if wake, ok := byID[c.RemotePeer()]; ok {
			poke(wake)
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

// wake has all peers that are not connected dialed now.
func (p *peering) wake() {
	for _, w := range p.wakers {
		poke(w)
	}
}

func poke(wake chan struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// keep is the loop for one peer.
func (p *peering) keep(ctx context.Context, info peer.AddrInfo, wake <-chan struct{}) {
	wait, quiet := firstRetry, false
	for ctx.Err() == nil {
		if p.host.Network().Connectedness(info.ID) != network.Connected {
			err := p.dial(ctx, info)
			switch {
			case err == nil:
				p.log.Info("peer connected", "peer", info.ID.String())
				wait, quiet = firstRetry, false
			case ctx.Err() == nil && !quiet:
				p.log.Warn("peer cannot be reached; trying on", "peer", info.ID.String(), "addrs", info.Addrs, "err", err)
				quiet = true
			}
		}
		// Two nodes that dial each other at once may lose both connections:
		// half of the time is random.
		t := time.NewTimer(wait/2 + rand.N(wait))
		wait = min(2*wait, lastRetry)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-wake:
			// Whoever wakes us often does not make us dial often.
			sleep(ctx, firstRetry/2+rand.N(firstRetry/2))
			if p.host.Network().Connectedness(info.ID) == network.Connected {
				break
			}
			wait = firstRetry
		}
		t.Stop()
	}
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
