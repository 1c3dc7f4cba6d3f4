package node

import (
	"sync"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/bans"
)

// How a peer came to be known, as [ipfs.Peer] says it.
const (
	knownConfigured = "configured"
	knownDNS        = "dns"
	knownMDNS       = "mdns"
	knownDHT        = "dht"
	knownInbound    = "inbound"
)

// maxKnown bounds how many peers that were found are remembered as such.
const maxKnown = 8192

// gater is the connection gater: whatever the way a peer is found, it is asked
// before anything goes out, and again once the peer has proved its id.
type gater struct {
	bans *bans.Bans
	// listed are the only peers let in and out; nil: the swarm key decides, or
	// all are welcome.
	listed map[peer.ID]bool
	// awayOnly holds strangers to public addresses: in a public network anyone
	// can say that a peer is at an address of our own network.
	awayOnly bool

	mu    sync.RWMutex
	known map[peer.ID]string
}

var _ connmgr.ConnectionGater = (*gater)(nil)

func newGater(s settings, b *bans.Bans) *gater {
	g := &gater{bans: b, known: make(map[peer.ID]string)}
	if s.Mode == Private && s.key == nil {
		g.listed = make(map[peer.ID]bool, len(s.peers))
	}
	for _, i := range s.peers {
		g.known[i.ID] = knownConfigured
		if g.listed != nil {
			g.listed[i.ID] = true
		}
	}
	for _, i := range s.bootstrap {
		g.known[i.ID] = knownConfigured
	}
	g.awayOnly = s.Mode == Public && !s.standIn()
	return g
}

// allowed tells whether a peer may be talked to at all.
func (g *gater) allowed(p peer.ID) bool {
	return (g.listed == nil || g.listed[p]) && !g.bans.Banned(p)
}

// met notes how a peer was found on the network of our own.
func (g *gater) met(p peer.ID, how string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.known[p] == "" && len(g.known) < maxKnown {
		g.known[p] = how
	}
}

// how tells by what a connected peer is known.
func (g *gater) how(p peer.ID, inbound bool) string {
	g.mu.RLock()
	defer g.mu.RUnlock()
	switch how := g.known[p]; {
	case how != "":
		return how
	case inbound:
		return knownInbound
	default:
		return knownDHT
	}
}

// InterceptPeerDial implements [connmgr.ConnectionGater].
func (g *gater) InterceptPeerDial(p peer.ID) bool { return g.allowed(p) }

// InterceptAddrDial implements [connmgr.ConnectionGater].
func (g *gater) InterceptAddrDial(p peer.ID, a ma.Multiaddr) bool {
	if !g.allowed(p) {
		return false
	}
	return !g.awayOnly || manet.IsPublicAddr(a) || g.how(p, false) != knownDHT
}

// InterceptAccept implements [connmgr.ConnectionGater]. A peer's id is known
// only once the connection is encrypted.
func (g *gater) InterceptAccept(network.ConnMultiaddrs) bool {
	return g.listed == nil || len(g.listed) > 0
}

// InterceptSecured implements [connmgr.ConnectionGater].
func (g *gater) InterceptSecured(_ network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	return g.allowed(p)
}

// InterceptUpgraded implements [connmgr.ConnectionGater].
func (g *gater) InterceptUpgraded(c network.Conn) (bool, control.DisconnectReason) {
	return g.allowed(c.RemotePeer()), 0
}
