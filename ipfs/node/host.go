package node

import (
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/direct"
)

// What one rack needs: all its nodes may sit behind one address, and a pod
// network of IPv6 is one /56. libp2p's defaults (8 connections, one new one in
// 5 s) are made for strangers; ours are in the allow-list or have the key.
const (
	connsPerIPv4 = 256  // per address
	connsPerIPv6 = 1024 // per /56
)

// newHost makes a libp2p host that is closed but for the settings' peers: TCP
// only, no relay, no hole punching, no AutoNAT, no port mapping, no discovery
// of any kind. (libp2p has all of these off unless asked for, but for the relay
// client and the discovery of our own address by others.)
func newHost(s settings, key crypto.PrivKey) (host.Host, error) {
	limits := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&limits)
	direct.SetLimits(&limits)
	resources, err := rcmgr.NewResourceManager(
		rcmgr.NewFixedLimiter(limits.AutoScale()),
		rcmgr.WithMetricsDisabled(),
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
	if err != nil {
		return nil, fmt.Errorf("node: resource limits: %w", err)
	}
	opts := []libp2p.Option{
		libp2p.Identity(key),
		libp2p.UserAgent("ipfs-stargz"),
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.DefaultSecurity,
		libp2p.DefaultMuxers,
		libp2p.ResourceManager(resources),
		libp2p.ConnectionManager(connmgr.NullConnMgr{}), // nobody we let in is too many
		libp2p.DisableRelay(),
		libp2p.DisableIdentifyAddressDiscovery(),
		libp2p.DisableMetrics(),
		libp2p.NoListenAddrs, // see below
	}
	if len(s.announce) > 0 {
		opts = append(opts, libp2p.AddrsFactory(func([]ma.Multiaddr) []ma.Multiaddr { return s.announce }))
	}
	if s.key != nil {
		opts = append(opts, libp2p.PrivateNetwork(s.key))
	} else {
		opts = append(opts, libp2p.ConnectionGater(newAllowList(s.peers)))
	}
	h, err := libp2p.New(opts...)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("node: %w", err), resources.Close())
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

// allowList is a connection gater that lets no one in or out but the peers
// listed. A peer's id is known only once the connection is encrypted.
type allowList struct{ peers map[peer.ID]bool }

var _ connmgr.ConnectionGater = allowList{}

func newAllowList(infos []peer.AddrInfo) allowList {
	a := allowList{peers: make(map[peer.ID]bool, len(infos))}
	for _, i := range infos {
		a.peers[i.ID] = true
	}
	return a
}

func (a allowList) InterceptPeerDial(p peer.ID) bool                 { return a.peers[p] }
func (a allowList) InterceptAddrDial(p peer.ID, _ ma.Multiaddr) bool { return a.peers[p] }
func (a allowList) InterceptAccept(network.ConnMultiaddrs) bool      { return len(a.peers) > 0 }

func (a allowList) InterceptSecured(_ network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	return a.peers[p]
}

func (a allowList) InterceptUpgraded(c network.Conn) (bool, control.DisconnectReason) {
	return a.peers[c.RemotePeer()], 0
}
