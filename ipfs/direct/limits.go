package direct

import rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"

// SetLimits gives the exchange's streams room in a host's resource manager,
// whose defaults allow 64 of a protocol by one peer.
func SetLimits(c *rcmgr.ScalingLimitConfig) {
	const (
		one    = 4 * maxFlights // streams with one peer
		all    = 64 * one
		memory = 1 << 30 // bytes; of streams' windows, for the most part
	)
	limit := func(streams int) rcmgr.BaseLimit {
		return rcmgr.BaseLimit{StreamsInbound: streams, StreamsOutbound: streams, Streams: 2 * streams, Memory: memory}
	}
	c.AddProtocolLimit(httpProtocol, limit(all), rcmgr.BaseLimitIncrease{})
	c.AddProtocolPeerLimit(httpProtocol, limit(one), rcmgr.BaseLimitIncrease{})
	c.PeerBaseLimit.StreamsInbound = max(c.PeerBaseLimit.StreamsInbound, 2*one)
	c.PeerBaseLimit.StreamsOutbound = max(c.PeerBaseLimit.StreamsOutbound, 2*one)
	c.PeerBaseLimit.Streams = max(c.PeerBaseLimit.Streams, 4*one)
	c.PeerBaseLimit.Memory = max(c.PeerBaseLimit.Memory, memory)
}
