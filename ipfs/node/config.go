package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store"
)

// Mode says who may be talked to.
type Mode string

const (
	// Private is closed: the configured peers, or whoever has the swarm key,
	// and nobody else. No service of the public IPFS network is used.
	Private Mode = "private"
	// Public is a node of the public IPFS network: it looks for blocks there,
	// announces what it holds there, and serves it to whoever asks.
	Public Mode = "public"
)

// Config says where a node keeps its things and whom it talks to.
type Config struct {
	// Dir holds the identity and the blocks. It is made if it is missing, and
	// used by one process at a time.
	Dir string
	// Mode is [Private] by default.
	Mode Mode
	// Listen are the multiaddrs to listen on: "/ip4/0.0.0.0/tcp/4001", and
	// without a swarm key "/ip4/0.0.0.0/udp/4001/quic-v1" too. Without any the
	// node dials and is not dialed.
	Listen []string
	// Announce are the multiaddrs that peers are told instead of those found
	// on the interfaces, for a node behind a load balancer or a NAT.
	Announce []string
	// Peers are the multiaddrs of the nodes to stay connected with. With
	// /p2p/ID at its end it is that node; a bare "/p2p/ID" is one that may
	// connect to us. Without, it is whoever answers there, at each address
	// that a DNS name (of a headless service, say) has: the ids are learned.
	// In private mode without a swarm key the nodes listed by id are the only
	// ones that can connect, so a name alone lets nobody in.
	Peers []string
	// SwarmKeyFile is the path of a swarm key, in the format of Kubo's
	// swarm.key. With it every connection is encrypted with that key, and
	// whoever has it may connect. A file that cannot be read is an error: the
	// node never opens up for want of a key.
	SwarmKeyFile string
	// NoDHT turns the DHT off: the private one among our peers, or the public
	// one.
	NoDHT bool
	// MDNS finds nodes on the local network and shows ours to it, with peer id
	// and addresses. Only who may connect is connected.
	MDNS bool
	// Bootstrap are the multiaddrs, with /p2p/ID, through which the public DHT
	// is joined; none: the list of the IPFS network. Public mode only.
	Bootstrap []string
	// Routers are the URLs of delegated routers, which are asked who has what,
	// and so learn it. Public mode only.
	Routers []string
	// FetchTimeout is how long a Get waits for peers without any block
	// arriving. The default is 30 s.
	FetchTimeout time.Duration
	// Store says how much the node may hold.
	Store store.Options
	// Resolver resolves DNS names. The default is the system's.
	Resolver madns.BasicResolver
	// Log gets the node's log. The default discards it.
	Log *slog.Logger
}

const defaultFetchTimeout = 30 * time.Second

// settings is a Config that was checked and read.
type settings struct {
	Config
	listen, announce []ma.Multiaddr
	peers            []peer.AddrInfo // with their ids
	names            []ma.Multiaddr  // whose ids are to be learned
	bootstrap        []peer.AddrInfo
	key              pnet.PSK // nil: the allow-list decides, or nobody does
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
	if s.Mode == "" {
		s.Mode = Private
	}
	if err := s.readKey(); err != nil {
		return s, err
	}
	if err := s.readAddrs(); err != nil {
		return s, err
	}
	return s, s.contradictions()
}

func (s *settings) readKey() error {
	if s.SwarmKeyFile == "" {
		return nil
	}
	f, err := os.Open(s.SwarmKeyFile)
	if err != nil {
		return fmt.Errorf("node: swarm key: %w", err)
	}
	defer f.Close()
	if s.key, err = pnet.DecodeV1PSK(f); err != nil {
		return fmt.Errorf("node: swarm key %s: %w", s.SwarmKeyFile, err)
	}
	if len(s.key) != 32 {
		return fmt.Errorf("node: swarm key %s: %d bytes, want 32", s.SwarmKeyFile, len(s.key))
	}
	return nil
}

func (s *settings) readAddrs() (err error) {
	all, err := multiaddrs(s.Peers)
	if err != nil {
		return fmt.Errorf("node: peer %w", err)
	}
	var ids []ma.Multiaddr
	for _, m := range all {
		if _, err := m.ValueForProtocol(ma.P_P2P); err == nil {
			ids = append(ids, m)
		} else {
			s.names = append(s.names, m)
		}
	}
	if s.peers, err = peer.AddrInfosFromP2pAddrs(ids...); err != nil {
		return fmt.Errorf("node: peers: %w", err)
	}
	boot, err := multiaddrs(s.Bootstrap)
	if err != nil {
		return fmt.Errorf("node: bootstrap peer %w", err)
	}
	if s.bootstrap, err = peer.AddrInfosFromP2pAddrs(boot...); err != nil {
		return fmt.Errorf("node: bootstrap peers: %w; want /p2p/ID at the end of each", err)
	}
	if s.listen, err = multiaddrs(s.Listen); err != nil {
		return fmt.Errorf("node: listen on %w", err)
	}
	if s.announce, err = multiaddrs(s.Announce); err != nil {
		return fmt.Errorf("node: announce %w", err)
	}
	for _, r := range s.Routers {
		if u, err := url.Parse(r); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return fmt.Errorf("node: router %q: want an http or https URL", r)
		}
	}
	return nil
}

// contradictions refuses what would not do what its writer thinks it does. When
// in doubt the node does not start: it never opens up by mistake.
func (s *settings) contradictions() error {
	for _, a := range s.listen {
		if !isTCP(a) && !isQUIC(a) {
			return fmt.Errorf("node: listen on %q: want /ip4/…/tcp/… or /ip4/…/udp/…/quic-v1", a)
		}
	}
	if s.key != nil {
		for _, a := range slices.Concat(s.listen, s.announce, s.names, addrsOf(s.peers)) {
			if has(a, ma.P_UDP) {
				return fmt.Errorf("node: %s: QUIC cannot use a swarm key; take a TCP address, or the list of peers instead of the key", a)
			}
		}
	}
	for _, a := range s.names {
		if !has(a, ma.P_TCP) && !has(a, ma.P_DNSADDR) {
			return fmt.Errorf("node: peer %s: the id of who answers is learned over TCP only; add /p2p/ID, or take /dns4/NAME/tcp/PORT", a)
		}
	}
	if s.MDNS && len(s.listen) == 0 {
		return errors.New("node: mDNS shows where a node listens, and this one listens nowhere")
	}
	switch {
	case s.Mode == Private:
		return s.privateContradictions()
	case s.Mode != Public:
		return fmt.Errorf("node: mode %q is neither private nor public", s.Mode)
	case s.key != nil:
		return errors.New("node: mode public with a swarm key: the key shuts the public network out; take mode private, or leave the key away")
	}
	return nil
}

func (s *settings) privateContradictions() error {
	open := !s.isolated()
	switch {
	case len(s.bootstrap) > 0:
		return errors.New("node: bootstrap peers are of mode public: a private node finds its peers by their list, DNS, mDNS or each other")
	case len(s.Routers) > 0:
		return errors.New("node: routers are of mode public: a private node asks nobody outside, for who asks tells what it runs")
	case len(s.names) > 0 && !open:
		return fmt.Errorf("node: peer %s: without a swarm key nothing says who may answer there; add /p2p/ID (as `ipfs-stargz status` prints it on that node), or give all nodes one swarm key", s.names[0])
	case s.MDNS && !open:
		return errors.New("node: mDNS without a swarm key or peers to look for: nobody it finds may connect")
	}
	return nil
}

// isolated tells that nobody can ever connect.
func (s *settings) isolated() bool {
	return s.Mode == Private && s.key == nil && len(s.peers) == 0
}

// standIn tells whether the public network is one of our own: all that it is
// joined through are at private addresses. Then such addresses are dialed.
func (s *settings) standIn() bool {
	addrs := addrsOf(s.bootstrap)
	return len(addrs) > 0 && !slices.ContainsFunc(addrs, func(a ma.Multiaddr) bool { return !isLocal(a) })
}

func isLocal(a ma.Multiaddr) bool { return manet.IsPrivateAddr(a) || manet.IsIPLoopback(a) }

func isTCP(a ma.Multiaddr) bool  { return isPath(a, ma.P_TCP) }
func isQUIC(a ma.Multiaddr) bool { return isPath(a, ma.P_UDP, ma.P_QUIC_V1) }

// isPath tells whether an address is one of IP and then these protocols.
func isPath(a ma.Multiaddr, codes ...int) bool {
	var got []int
	for _, p := range a.Protocols() {
		got = append(got, p.Code)
	}
	return len(got) > 0 && (got[0] == ma.P_IP4 || got[0] == ma.P_IP6) && slices.Equal(got[1:], codes)
}

func has(a ma.Multiaddr, code int) bool {
	_, err := a.ValueForProtocol(code)
	return err == nil
}

func addrsOf(infos []peer.AddrInfo) (out []ma.Multiaddr) {
	for _, i := range infos {
		out = append(out, i.Addrs...)
	}
	return out
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
