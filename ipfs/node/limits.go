package node

import (
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	libp2pconnmgr "github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/direct"
)

// What one rack needs: all its nodes may sit behind one address, and a pod
// network of IPv6 is one /56. libp2p's defaults (8 connections, one new one in
// 5 s) are made for strangers; ours are in the allow-list or have the key.
const (
	connsPerIPv4     = 256  // per address
	connsPerIPv6     = 1024 // per /56
	connsOfSwarm     = 4096 // in all
	handshakesAtOnce = 512  // when a whole swarm starts
	streamsPerPeer   = 1024 // of one kind and in all
)

// In public mode libp2p's own limits hold for strangers, and this many are kept.
const (
	strangersLow   = 64
	strangersHigh  = 128
	strangersGrace = 30 * time.Second

	streamsOfStranger = 128
	memoryOfStranger  = 64 << 20 // bytes
)

// newResources makes the resource manager: a node has limits in memory, too,
// that libp2p takes from the machine's.
func newResources(s settings) (network.ResourceManager, error) {
	scaling := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&scaling)
	direct.SetLimits(&scaling)
	limits := scaling.AutoScale()
	opts := []rcmgr.Option{rcmgr.WithMetricsDisabled()}
	if s.Mode == Public {
		// Peers of our own may be many behind one address here too.
		var ours []ma.Multiaddr
		for _, a := range addrsOf(s.peers) {
			if isTCP(a) || isQUIC(a) {
				ours = append(ours, a)
			}
		}
		opts = append(opts, rcmgr.WithAllowlistedMultiaddrs(ours))
		strangers := rcmgr.PartialLimitConfig{
			PeerDefault: rcmgr.ResourceLimits{
				Streams: 2 * streamsOfStranger, StreamsInbound: streamsOfStranger, StreamsOutbound: streamsOfStranger, Memory: memoryOfStranger,
			},
			Peer: make(map[peer.ID]rcmgr.ResourceLimits),
		}
		generous := limits.ToPartialLimitConfig().PeerDefault
		for _, i := range s.peers {
			strangers.Peer[i.ID] = generous
		}
		limits = strangers.Build(limits)
	} else {
		conns := rcmgr.ResourceLimits{Conns: connsOfSwarm, ConnsInbound: connsOfSwarm, ConnsOutbound: connsOfSwarm}
		streams := rcmgr.ResourceLimits{Streams: 2 * streamsPerPeer, StreamsInbound: streamsPerPeer, StreamsOutbound: streamsPerPeer}
		limits = rcmgr.PartialLimitConfig{
			System: conns,
			Transient: rcmgr.ResourceLimits{
				Conns: handshakesAtOnce, ConnsInbound: handshakesAtOnce, ConnsOutbound: handshakesAtOnce, FD: handshakesAtOnce,
			},
			PeerDefault:         streams,
			ProtocolPeerDefault: streams,
		}.Build(limits)
		opts = append(opts,
			rcmgr.WithLimitPerSubnet(
				[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: connsPerIPv4}},
				[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: connsPerIPv6}},
			),
			rcmgr.WithConnRateLimiters(&rate.Limiter{SubnetRateLimiter: rate.SubnetLimiter{
				GracePeriod:      time.Minute,
				IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: rate.Limit{RPS: 20, Burst: connsPerIPv4}}},
				IPv6SubnetLimits: []rate.SubnetLimit{{PrefixLength: 56, Limit: rate.Limit{RPS: 50, Burst: connsPerIPv6}}},
			}}),
		)
	}
	resources, err := rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits), opts...)
	if err != nil {
		return nil, fmt.Errorf("node: resource limits: %w", err)
	}
	return resources, nil
}

// newConnManager closes connections of strangers when there are too many.
// Nobody that a private node lets in is too many.
func newConnManager(s settings) (connmgr.ConnManager, error) {
	if s.Mode == Private {
		return connmgr.NullConnMgr{}, nil
	}
	m, err := libp2pconnmgr.NewConnManager(strangersLow, strangersHigh, libp2pconnmgr.WithGracePeriod(strangersGrace))
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	for _, i := range s.peers {
		m.Protect(i.ID, knownConfigured)
	}
	return m, nil
}
