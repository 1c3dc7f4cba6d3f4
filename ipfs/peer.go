package ipfs

import "time"

// Peer is a node that ours is connected to.
type Peer struct {
	ID      string        `json:"id"`
	Addr    string        `json:"addr"`            // multiaddr, without /p2p/
	Known   string        `json:"known"`           // how: configured, dns, mdns, dht or inbound
	Inbound bool          `json:"inbound"`         // it dialed us
	Agent   string        `json:"agent,omitempty"` // what it says it runs
	Latency time.Duration `json:"latency_ns"`      // measured round trip; 0: not yet
}

// Ban is a peer that is not talked to, as it sent what it should not have.
type Ban struct {
	ID     string    `json:"id"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until"`
}
