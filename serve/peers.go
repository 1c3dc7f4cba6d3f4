package serve

import (
	"net/http"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// Peers is what the RPC tells of the peers, if the node can.
type Peers interface {
	Peers() []ipfs.Peer
	Bans() []ipfs.Ban
	// Forgive ends the ban of a peer id.
	Forgive(id string) error
}

func (h *handler) addPeers(commands map[string]command) {
	if h.Peers != nil {
		commands["swarm/peers"] = h.peersKnown
		commands["swarm/bans"] = h.bans
		commands["swarm/forgive"] = h.forgive
	}
}

// peersKnown answers swarm/peers: Kubo's fields, and how the peer is known.
func (h *handler) peersKnown(w http.ResponseWriter, _ *http.Request) error {
	type identify struct{ AgentVersion string }
	type connected struct {
		Addr, Peer string
		Latency    string `json:",omitempty"`
		Direction  int    // 1: it dialed us; 2: we dialed it
		Identify   identify
		Known      string // ours: configured, dns, mdns, dht or inbound
	}
	list := []connected{}
	for _, p := range h.Peers.Peers() {
		c := connected{Addr: p.Addr, Peer: p.ID, Direction: 2, Identify: identify{p.Agent}, Known: p.Known}
		if p.Inbound {
			c.Direction = 1
		}
		if p.Latency > 0 {
			c.Latency = p.Latency.Round(time.Microsecond).String()
		}
		list = append(list, c)
	}
	return h.reply(w, struct{ Peers []connected }{list})
}

// bans answers swarm/bans, which is ours: the peers that are refused.
func (h *handler) bans(w http.ResponseWriter, _ *http.Request) error {
	return h.reply(w, struct{ Bans []ipfs.Ban }{h.Peers.Bans()})
}

// forgive answers swarm/forgive?arg=ID, which is ours.
func (h *handler) forgive(w http.ResponseWriter, r *http.Request) error {
	id, err := argument(r.URL.Query(), "peer")
	if err != nil {
		return err
	}
	if err := h.Peers.Forgive(id); err != nil {
		return err
	}
	return h.reply(w, struct{ Peer string }{id})
}
