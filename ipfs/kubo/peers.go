package kubo

import (
	"context"
	"encoding/json"
	"io"
	"net/url"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/stall"
)

// maxLongReply bounds an answer that is a list, in bytes.
const maxLongReply = 32 << 20

// ask calls a command with arguments whose answer is one JSON value.
func (c *Client) ask(ctx context.Context, cmd string, args url.Values, v any) error {
	ctx, watch := stall.Start(ctx, c.longest())
	defer watch.Stop()
	watch.Enter()
	resp, err := c.call(ctx, cmd, args, nil, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxLongReply)).Decode(v); err != nil {
		return c.failed(ctx, cmd, err)
	}
	return nil
}

// longest is how long a command about the network may take to answer: to
// publish a name in the public DHT takes minutes.
func (c *Client) longest() time.Duration { return max(c.timeout, 5*time.Minute) }

// PeersKnown returns the connected peers with all that is known of them.
func (c *Client) PeersKnown(ctx context.Context) ([]ipfs.Peer, error) {
	var v struct {
		Peers []struct {
			Addr, Peer, Latency, Known string
			Direction                  int
			Identify                   struct{ AgentVersion string }
		}
	}
	args := url.Values{"latency": {"true"}, "direction": {"true"}, "identify": {"true"}}
	if err := c.ask(ctx, "swarm/peers", args, &v); err != nil {
		return nil, err
	}
	out := make([]ipfs.Peer, 0, len(v.Peers))
	for _, p := range v.Peers {
		x := ipfs.Peer{ID: p.Peer, Addr: p.Addr, Known: p.Known, Inbound: p.Direction == 1, Agent: p.Identify.AgentVersion}
		if d, err := time.ParseDuration(p.Latency); err == nil { // else it is not measured: "n/a"
			x.Latency = d
		}
		out = append(out, x)
	}
	return out, nil
}

// Bans returns the peers that the daemon refuses. Only our daemon knows the
// command.
func (c *Client) Bans(ctx context.Context) ([]ipfs.Ban, error) {
	var v struct{ Bans []ipfs.Ban }
	err := c.ask(ctx, "swarm/bans", nil, &v)
	return v.Bans, err
}

// Forgive ends the ban of a peer.
func (c *Client) Forgive(ctx context.Context, id string) error {
	return c.ask(ctx, "swarm/forgive", url.Values{"arg": {id}}, &struct{ Peer string }{})
}
