package node

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/bans"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/discovery"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/names"
)

// found is all that finds peers, and what is remembered of them.
type found struct {
	bans    *bans.Bans
	gater   *gater
	peering *peering
	routing *discovery.Routing
	dns     *discovery.Names
	mdns    *discovery.MDNS
	names   *names.Names
}

// openHost makes the host, with the gater that all its connections pass.
func (n *Node) openHost(key crypto.PrivKey) (err error) {
	if n.found.bans, err = bans.Open(filepath.Join(n.s.Dir, "banned.json"), n.s.Log); err != nil {
		return err
	}
	n.found.gater = newGater(n.s, n.found.bans)
	if n.host, err = newHost(n.s, key, n.found.gater); err != nil {
		return err
	}
	n.found.bans.OnBan(func(id peer.ID) {
		if n.found.gater.how(id, true) == knownConfigured {
			n.s.Log.Error("a configured peer sent what it should not have and is banned; look into that node, then `ipfs-stargz peers --forgive`", "peer", id.String())
		}
		if err := n.host.Network().ClosePeer(id); err != nil {
			n.s.Log.Debug("a banned peer's connection did not close well", "peer", id.String(), "err", err)
		}
	})
	return nil
}

// startDiscovery starts all that finds peers.
func (n *Node) startDiscovery(key crypto.PrivKey) (err error) {
	f, s := &n.found, &n.s
	f.peering = startPeering(n.host, s.peers, s.Log)
	n.peering = f.peering
	f.routing, err = discovery.NewRouting(discovery.RoutingConfig{
		Host: n.host, Public: s.Mode == Public, StandIn: s.standIn(), NoDHT: s.NoDHT || s.isolated(),
		Bootstrap: s.bootstrap, Routers: s.Routers, Allowed: f.gater.allowed, Log: s.Log,
	})
	if err != nil {
		return err
	}
	if f.names, err = names.Open(names.Config{
		Dir: s.Dir, Self: key, Records: f.routing, Log: s.Log,
	}); err != nil {
		return err
	}
	if len(s.names) > 0 {
		if f.dns, err = discovery.StartNames(discovery.NamesConfig{
			Names: s.names, Resolver: s.Resolver, Key: s.key,
			Self: n.host.ID(), Allowed: f.gater.allowed, Connected: f.peering.connected,
			Found: func(p peer.AddrInfo) { n.met(p, knownDNS) },
			Lost:  func(id peer.ID) { f.peering.forget(id, knownDNS) },
			Log:   s.Log,
		}); err != nil {
			return err
		}
	}
	if s.MDNS {
		service := discovery.PrivateService
		if s.Mode == Public {
			service = ""
		}
		f.mdns = discovery.StartMDNS(discovery.MDNSConfig{
			Host: n.host, Service: service, Allowed: f.gater.allowed,
			Found: func(p peer.AddrInfo) { n.met(p, knownMDNS) }, Log: s.Log,
		})
	}
	return nil
}

// met has a peer connected that was found by name or on the local network.
func (n *Node) met(p peer.AddrInfo, how string) {
	n.found.gater.met(p.ID, how)
	n.found.peering.keep(p, how)
}

// stopDiscovery ends what startDiscovery started, as far as it came.
func (n *Node) stopDiscovery() error {
	f := &n.found
	if f.mdns != nil {
		f.mdns.Close()
	}
	if f.dns != nil {
		f.dns.Close()
	}
	if f.peering != nil {
		f.peering.stop()
	}
	if f.names != nil {
		f.names.Close()
	}
	if f.routing != nil {
		return f.routing.Close()
	}
	return nil
}

// Provide announces, to those who may connect, that we have blocks of the file
// under root: now and again and again, in the background, until it is withdrawn
// or the node closes. It is not kept over a restart. It is no error when there
// is no DHT to announce it in.
func (n *Node) Provide(ctx context.Context, root cid.Cid) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := n.found.routing.Provide(root); !errors.Is(err, discovery.ErrNoRouting) {
		return err
	}
	return nil
}

// Withdraw ends the announcing of a root.
func (n *Node) Withdraw(root cid.Cid) { n.found.routing.Withdraw(root) }

// FindProviders yields up to limit peers that say they have blocks of the file
// under root, and may be connected, as they are found. It ends by itself after a
// bounded time.
func (n *Node) FindProviders(ctx context.Context, root cid.Cid, limit int) iter.Seq[peer.AddrInfo] {
	return n.found.routing.FindProviders(ctx, root, limit)
}

// Names returns the node's names of IPNS.
func (n *Node) Names() *names.Names { return n.found.names }

// Ban has a peer that sent what it should not have dropped, and refused from now
// on in both directions, for a week.
func (n *Node) Ban(id peer.ID, reason string) {
	n.s.Log.Warn("a peer is banned", "peer", id.String(), "reason", reason)
	n.found.bans.Ban(id, reason)
}

// Bans returns the peers that are banned.
func (n *Node) Bans() []ipfs.Ban { return n.found.bans.List() }

// Forgive ends a ban. The peer is connected again as it is found.
func (n *Node) Forgive(id string) error {
	p, err := peer.Decode(id)
	if err != nil {
		return fmt.Errorf("node: peer id %q: %w", id, err)
	}
	if err := n.found.bans.Forgive(p); err != nil {
		return err
	}
	n.found.peering.wake()
	return nil
}

// Peers returns the connected peers, by id.
func (n *Node) Peers() []ipfs.Peer {
	out := []ipfs.Peer{}
	for _, c := range n.host.Network().Conns() {
		id, inbound := c.RemotePeer(), c.Stat().Direction == network.DirInbound
		p := ipfs.Peer{
			ID: id.String(), Addr: c.RemoteMultiaddr().String(), Inbound: inbound,
			Known: n.found.gater.how(id, inbound), Latency: n.host.Peerstore().LatencyEWMA(id),
		}
		if agent, err := n.host.Peerstore().Get(id, "AgentVersion"); err == nil {
			p.Agent, _ = agent.(string)
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b ipfs.Peer) int {
		return strings.Compare(a.ID+" "+a.Addr, b.ID+" "+b.Addr)
	})
	return out
}
