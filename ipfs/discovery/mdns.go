package discovery

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
)

// Bounds of mDNS.
const (
	mdnsRetry    = 30 * time.Second
	maxMDNSAddrs = 16 // of one peer
)

// PrivateService is the name under which private nodes are found; in the public
// network it is libp2p's own, and every node of IPFS is.
const PrivateService = "_ipfs-stargz._udp"

// MDNSConfig is what [StartMDNS] needs.
type MDNSConfig struct {
	Host    host.Host
	Service string // [PrivateService], or "" for libp2p's
	// Allowed tells whether a peer may be talked to.
	Allowed func(peer.ID) bool
	// Found is called with each peer that is found. It must not block.
	Found func(peer.AddrInfo)
	Log   *slog.Logger
}

// MDNS finds nodes on the local network, and shows ours to everybody on it: peer
// id and addresses. Anybody there can say anything; only the handshake shows
// who is who. Use [StartMDNS].
type MDNS struct {
	MDNSConfig
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// StartMDNS starts it in the background, and tries on where the network does not
// let it yet.
func StartMDNS(c MDNSConfig) *MDNS {
	ctx, cancel := context.WithCancel(context.Background())
	m := &MDNS{MDNSConfig: c, cancel: cancel}
	m.done.Go(func() { m.run(ctx) })
	return m
}

// Close ends it.
func (m *MDNS) Close() {
	m.cancel()
	m.done.Wait()
}

func (m *MDNS) run(ctx context.Context) {
	for warned := false; ; warned = true {
		s := mdns.NewMdnsService(m.Host, m.Service, m)
		err := s.Start()
		if err == nil {
			<-ctx.Done()
		}
		if cerr := s.Close(); cerr != nil {
			m.Log.Warn("mDNS did not end well", "err", cerr)
		}
		if err != nil && !warned {
			m.Log.Warn("mDNS cannot be used; trying on", "err", err)
		}
		t := time.NewTimer(mdnsRetry)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// HandlePeerFound implements [mdns.Notifee].
func (m *MDNS) HandlePeerFound(p peer.AddrInfo) {
	if p.ID == m.Host.ID() || len(p.Addrs) == 0 || !m.Allowed(p.ID) {
		return
	}
	p.Addrs = p.Addrs[:min(len(p.Addrs), maxMDNSAddrs)]
	m.Found(p)
}
