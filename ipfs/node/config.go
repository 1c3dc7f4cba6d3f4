package node

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store"
)

// Config says where a node keeps its things and whom it talks to.
type Config struct {
	// Dir holds the identity and the blocks. It is made if it is missing, and
	// used by one process at a time.
	Dir string
	// Listen are the multiaddrs to listen on, TCP only:
	// "/ip4/0.0.0.0/tcp/4011". Without any the node dials and is not dialed.
	Listen []string
	// Announce are the multiaddrs that peers are told instead of those found
	// on the interfaces, for a node behind a load balancer or a NAT.
	Announce []string
	// Peers are the multiaddrs, each with /p2p/ID at its end, of the nodes to
	// stay connected with. A bare "/p2p/ID" is a node that may connect to us.
	// Without a swarm key these nodes are the only ones that can connect.
	Peers []string
	// SwarmKeyFile is the path of a swarm key, in the format of Kubo's
	// swarm.key. With it every connection is encrypted with that key, and
	// whoever has it may connect. A file that cannot be read is an error: the
	// node never opens up for want of a key.
	SwarmKeyFile string
	// FetchTimeout is how long a Get waits for peers without any block
	// arriving. The default is 30 s.
	FetchTimeout time.Duration
	// Store says how much the node may hold.
	Store store.Options
	// Log gets the node's log. The default discards it.
	Log *slog.Logger
}

const defaultFetchTimeout = 30 * time.Second

// settings is a Config that was checked and read.
type settings struct {
	Config
	listen, announce []ma.Multiaddr
	peers            []peer.AddrInfo
	key              pnet.PSK // nil: the allow-list decides
}

func (c Config) check() (settings, error) {
	s := settings{Config: c}
	if c.Dir == "" {
		return s, errors.New("node: no directory is configured")
	}
	if s.FetchTimeout <= 0 {
		s.FetchTimeout = defaultFetchTimeout
	}
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	var peers []ma.Multiaddr
	for _, p := range c.Peers {
		m, err := ma.NewMultiaddr(p)
		if err != nil {
			return s, fmt.Errorf("node: peer %q: %w", p, err)
		}
		if _, err := m.ValueForProtocol(ma.P_P2P); err != nil {
			return s, fmt.Errorf("node: peer %q: want /p2p/ID at the end, as `ipfs-stargz status` prints it on that node", p)
		}
		peers = append(peers, m)
	}
	var err error
	if s.peers, err = peer.AddrInfosFromP2pAddrs(peers...); err != nil {
		return s, fmt.Errorf("node: peers: %w", err)
	}
	if s.listen, err = multiaddrs(c.Listen); err != nil {
		return s, fmt.Errorf("node: listen on %w", err)
	}
	if s.announce, err = multiaddrs(c.Announce); err != nil {
		return s, fmt.Errorf("node: announce %w", err)
	}
	if c.SwarmKeyFile != "" {
		f, err := os.Open(c.SwarmKeyFile)
		if err != nil {
			return s, fmt.Errorf("node: swarm key: %w", err)
		}
		defer f.Close()
		if s.key, err = pnet.DecodeV1PSK(f); err != nil {
			return s, fmt.Errorf("node: swarm key %s: %w", c.SwarmKeyFile, err)
		}
		if len(s.key) != 32 {
			return s, fmt.Errorf("node: swarm key %s: %d bytes, want 32", c.SwarmKeyFile, len(s.key))
		}
	}
	return s, nil
}

func multiaddrs(addrs []string) ([]ma.Multiaddr, error) {
	var out []ma.Multiaddr
	for _, a := range addrs {
		m, err := ma.NewMultiaddr(a)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", a, err)
		}
		out = append(out, m)
	}
	return out, nil
}
