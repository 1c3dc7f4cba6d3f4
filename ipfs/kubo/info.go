package kubo

import "context"

// Identity tells who a daemon is.
type Identity struct {
	ID              string   // peer id
	Addresses       []string // multiaddrs with /p2p/ID at the end
	AgentVersion    string
	ProtocolVersion string `json:",omitempty"`
}

// Version tells what a daemon runs.
type Version struct {
	Version string
	Commit  string
	System  string // "amd64/linux"
	Golang  string
}

// Peer is one connected peer.
type Peer struct {
	Addr string // multiaddr, without /p2p/
	Peer string // peer id
}

// ID returns who the daemon is and where it listens.
func (c *Client) ID(ctx context.Context) (Identity, error) {
	var v Identity
	err := c.reply(ctx, "id", &v)
	return v, err
}

// Version returns the daemon's version.
func (c *Client) Version(ctx context.Context) (Version, error) {
	var v Version
	err := c.reply(ctx, "version", &v)
	return v, err
}

// Peers returns the peers the daemon is connected to.
func (c *Client) Peers(ctx context.Context) ([]Peer, error) {
	var v struct{ Peers []Peer }
	err := c.reply(ctx, "swarm/peers", &v)
	return v.Peers, err
}

// Status fills v with what our own daemon says it is doing. No other daemon
// knows the command.
func (c *Client) Status(ctx context.Context, v any) error {
	return c.ask(ctx, "ipfs-stargz/status", nil, v)
}
