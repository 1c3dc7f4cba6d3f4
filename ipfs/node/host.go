package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// newHost makes a libp2p host that lets in and out whom the gater allows: TCP,
// and QUIC where there is no swarm key. There is no relay, no hole punching, no
// AutoNAT service and no port mapping in any mode. (libp2p has all of these off
// unless asked for, but for the relay client and the discovery of our own
// address by others, which only a public node wants.)
func newHost(s settings, key crypto.PrivKey, g *gater) (host.Host, error) {
	resources, err := newResources(s)
	if err != nil {
		return nil, err
	}
	conns, err := newConnManager(s)
	if err != nil {
		return nil, errors.Join(err, resources.Close())
	}
	resolver, err := newResolver(s)
	if err != nil {
		return nil, errors.Join(err, conns.Close(), resources.Close())
	}
	opts := []libp2p.Option{
		libp2p.Identity(key),
		libp2p.UserAgent("ipfs-stargz"),
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.DefaultSecurity,
		libp2p.Muxer(yamux.ID, newMuxer()),
		libp2p.ResourceManager(resources),
		libp2p.ConnectionManager(conns),
		libp2p.ConnectionGater(g),
		libp2p.DialRanker(rankDials),
		libp2p.MultiaddrResolver(swarm.ResolverFromMaDNS{Resolver: resolver}),
		libp2p.DisableRelay(),
		libp2p.DisableMetrics(),
		libp2p.NoListenAddrs, // see below
	}
	if len(s.announce) > 0 {
		opts = append(opts, libp2p.AddrsFactory(func([]ma.Multiaddr) []ma.Multiaddr { return s.announce }))
	}
	if s.Mode == Private {
		opts = append(opts, libp2p.DisableIdentifyAddressDiscovery())
	}
	if s.key != nil {
		opts = append(opts, libp2p.PrivateNetwork(s.key))
	} else {
		opts = append(opts, libp2p.Transport(quic.NewTransport))
	}
	h, err := libp2p.New(opts...)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("node: %w", err), conns.Close(), resources.Close())
	}
	// libp2p.New would leave goroutines behind when it cannot listen, and be
	// content with one address of many.
	for _, a := range s.listen {
		if err := h.Network().Listen(a); err != nil {
			return nil, errors.Join(fmt.Errorf("node: listen on %s: %w", a, err), h.Close())
		}
	}
	return h, nil
}

// newMuxer is yamux with a first window that takes a whole block, so that one
// costs one round trip (libp2p's is 256 KiB: a block of 1 MiB waits twice). It
// grows to 16 MiB, 1 Gbit/s over 130 ms. The memory is the resource manager's.
func newMuxer() *yamux.Transport {
	t := *yamux.DefaultTransport
	t.InitialStreamWindowSize = ipfs.MaxBlockSize
	t.MaxStreamWindowSize = 16 << 20
	return &t
}

// quicLater is how long TCP gets before QUIC is tried: it brings twice as much
// in the same time (727 against 305 MB/s on loopback).
const quicLater = 500 * time.Millisecond

// rankDials is libp2p's order of addresses, but TCP first.
func rankDials(addrs []ma.Multiaddr) []network.AddrDelay {
	var first, later []ma.Multiaddr
	for _, a := range addrs {
		if has(a, ma.P_TCP) {
			first = append(first, a)
		} else {
			later = append(later, a)
		}
	}
	ranked := swarm.DefaultDialRanker(first)
	var wait time.Duration
	for _, d := range ranked {
		wait = max(wait, d.Delay+quicLater)
	}
	for _, d := range swarm.DefaultDialRanker(later) {
		d.Delay += wait
		ranked = append(ranked, d)
	}
	return ranked
}

// newResolver resolves the names in addresses that are dialed. In private mode
// these are the configured ones alone: else a peer could have us ask the DNS for
// any name by saying that it is there.
func newResolver(s settings) (*madns.Resolver, error) {
	basic := s.Resolver
	if basic == nil {
		basic = net.DefaultResolver
	}
	if s.Mode == Private {
		own := ownNames{BasicResolver: basic}
		for _, a := range slices.Concat(addrsOf(s.peers), s.names) {
			for _, code := range []int{ma.P_DNS, ma.P_DNS4, ma.P_DNS6, ma.P_DNSADDR} {
				if name, err := a.ValueForProtocol(code); err == nil {
					own.names = append(own.names, name, "_dnsaddr."+name)
				}
			}
		}
		basic = own
	}
	r, err := madns.NewResolver(madns.WithDefaultResolver(basic))
	if err != nil {
		return nil, fmt.Errorf("node: DNS: %w", err)
	}
	return r, nil
}

// ownNames resolves some names, and no others.
type ownNames struct {
	madns.BasicResolver
	names []string
}

var errForeignName = errors.New("the name is not in the configuration")

// LookupIPAddr implements [madns.BasicResolver].
func (o ownNames) LookupIPAddr(ctx context.Context, name string) ([]net.IPAddr, error) {
	if !slices.Contains(o.names, name) {
		return nil, fmt.Errorf("%s: %w", name, errForeignName)
	}
	return o.BasicResolver.LookupIPAddr(ctx, name)
}

// LookupTXT implements [madns.BasicResolver].
func (o ownNames) LookupTXT(ctx context.Context, name string) ([]string, error) {
	if !slices.Contains(o.names, name) {
		return nil, fmt.Errorf("%s: %w", name, errForeignName)
	}
	return o.BasicResolver.LookupTXT(ctx, name)
}
