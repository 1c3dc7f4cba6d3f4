package node

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/test"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
)

const (
	somePeer = "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWQQe2yFFNE4iqMz1HFBhd2CGN4f5XD9MgB4YNBLyjsqt8"
	quicAddr = "/ip4/127.0.0.1/udp/0/quic-v1"
)

// What cannot mean what its writer thinks is refused, with what to do.
func TestContradictions(t *testing.T) {
	key := swarmKey(t, "a")
	for name, c := range map[string]struct {
		config Config
		want   string
	}{
		"no such mode":                {Config{Mode: "open"}, "neither private nor public"},
		"public with a key":           {Config{Mode: Public, SwarmKeyFile: key}, "shuts the public network out"},
		"private with bootstrap":      {Config{Bootstrap: []string{somePeer}}, "mode public"},
		"private with routers":        {Config{Routers: []string{"http://192.0.2.1"}}, "mode public"},
		"listen on QUIC with a key":   {Config{SwarmKeyFile: key, Listen: []string{quicAddr}}, "QUIC cannot use a swarm key"},
		"peer at QUIC with a key":     {Config{SwarmKeyFile: key, Peers: []string{"/ip4/192.0.2.1/udp/1/quic-v1/p2p/12D3KooWQQe2yFFNE4iqMz1HFBhd2CGN4f5XD9MgB4YNBLyjsqt8"}}, "QUIC cannot use a swarm key"},
		"announce QUIC with a key":    {Config{SwarmKeyFile: key, Announce: []string{quicAddr}}, "QUIC cannot use a swarm key"},
		"listen on something else":    {Config{Listen: []string{"/ip4/127.0.0.1/tcp/0/ws"}}, "want /ip4"},
		"a name alone without a key":  {Config{Peers: []string{"/dns4/example.com/tcp/4001"}}, "nothing says who may answer there"},
		"an address alone, likewise":  {Config{Peers: []string{"/ip4/192.0.2.1/tcp/4001"}}, "nothing says who may answer there"},
		"a name at QUIC":              {Config{Peers: []string{somePeer, "/dns4/example.com/udp/1/quic-v1"}}, "over TCP only"},
		"mDNS that can find nobody":   {Config{MDNS: true}, "nobody it finds may connect"},
		"mDNS that has no address":    {Config{MDNS: true, SwarmKeyFile: key, Listen: []string{}}, "listens nowhere"},
		"bootstrap peer without id":   {Config{Mode: Public, Bootstrap: []string{"/ip4/192.0.2.1/tcp/4001"}}, "/p2p/ID"},
		"router that is no URL":       {Config{Mode: Public, Routers: []string{"example.com"}}, "URL"},
		"router of another protocol":  {Config{Mode: Public, Routers: []string{"ftp://example.com"}}, "URL"},
		"bootstrap that is nonsense":  {Config{Mode: Public, Bootstrap: []string{"nonsense"}}, "bootstrap"},
		"relay address to listen on":  {Config{Listen: []string{"/p2p-circuit"}}, "want /ip4"},
		"public with the key missing": {Config{Mode: Public, SwarmKeyFile: "/nonexistent/key"}, "swarm key"},
	} {
		t.Run(name, func(t *testing.T) {
			c.config.Dir = t.TempDir()
			if c.config.Listen == nil {
				c.config.Listen = []string{loopback}
			}
			n, err := Open(t.Context(), c.config)
			if err == nil {
				err = n.Close()
				t.Fatalf("it opened, and closed with %v", err)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q does not say %q", err, c.want)
			}
		})
	}
}

// No protocol of the public network is spoken in private mode, and in neither
// mode are we a relay, a test of other's reachability, or a keeper of their
// records.
func TestProtocols(t *testing.T) {
	services := []string{"autonat", "circuit", "dcutr", "/ipfs/kad", "/ipfs/lan", "rendezvous", "meshsub"}
	ours := protocol.ID("/ipfs-stargz/kad/1.0.0")
	for name, c := range map[string]struct {
		config Config
		dht    bool
	}{
		"alone":           {Config{}, false},
		"list":            {Config{Peers: []string{"/p2p/" + identity(t, t.TempDir())}}, true},
		"key":             {Config{SwarmKeyFile: swarmKey(t, "a")}, true},
		"key without DHT": {Config{SwarmKeyFile: swarmKey(t, "a"), NoDHT: true}, false},
		"public":          {Config{Mode: Public, Bootstrap: []string{"/ip4/127.0.0.1/tcp/1/p2p/12D3KooWQQe2yFFNE4iqMz1HFBhd2CGN4f5XD9MgB4YNBLyjsqt8"}}, false},
	} {
		n := open(t, c.config)
		protocols := n.host.Mux().Protocols()
		for _, p := range protocols {
			for _, s := range services {
				if strings.Contains(string(p), s) {
					t.Errorf("%s: the node speaks %s", name, p)
				}
			}
		}
		if got := slices.Contains(protocols, ours); got != c.dht {
			t.Errorf("%s: it speaks %s: %v, want %v", name, ours, got, c.dht)
		}
	}
}

// A private node does not dial who is not listed, whoever says where he is.
func TestPrivateNodeDialsOnlyWhoIsListed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan struct{})
	go func() {
		defer close(accepted)
		if c, err := l.Accept(); err == nil {
			c.Close()
			t.Error("the node dialed")
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	addr := ma.StringCast("/ip4/127.0.0.1/tcp/" + port)
	client, _ := pair(t)
	stranger := peer.AddrInfo{ID: test.RandPeerIDFatal(t), Addrs: []ma.Multiaddr{addr}}
	if err := client.host.Connect(t.Context(), stranger); err == nil {
		t.Error("connected")
	}
	client.met(stranger, knownMDNS)
	client.met(stranger, knownDNS)
	eventually(t, "the stranger is tried and refused", func() bool {
		err := client.peering.dial(t.Context(), stranger)
		return err != nil && strings.Contains(err.Error(), "gater")
	})
	client.peering.forget(stranger.ID, knownMDNS)
	client.peering.forget(stranger.ID, knownDNS)
	l.Close()
	<-accepted
}

// asked notes what the DNS was asked for.
type asked struct {
	mu    sync.Mutex
	names []string
	ip    map[string][]net.IPAddr
}

func (a *asked) LookupIPAddr(_ context.Context, name string) ([]net.IPAddr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.names = append(a.names, name)
	return a.ip[name], nil
}

func (a *asked) LookupTXT(_ context.Context, name string) ([]string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.names = append(a.names, name)
	return nil, nil
}

// Peers tell each other where peers are. A private node asks the DNS for no name
// that only they say.
func TestPrivateNodeResolvesOnlyItsOwnNames(t *testing.T) {
	dir := t.TempDir()
	server := open(t, Config{Peers: []string{"/p2p/" + identity(t, dir)}})
	port, err := server.host.Addrs()[0].ValueForProtocol(ma.P_TCP)
	if err != nil {
		t.Fatal(err)
	}
	zone := &asked{ip: map[string][]net.IPAddr{"own.example": {{IP: net.IPv4(127, 0, 0, 1)}}}}
	client := open(t, Config{Dir: dir, Resolver: zone, Peers: []string{"/dns4/own.example/tcp/" + port + "/p2p/" + server.ID()}})
	connected(t, client, 1)
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	connected(t, client, 0)
	for _, a := range []string{"/dns4/evil.example/tcp/1", "/dnsaddr/evil.example"} {
		info := peer.AddrInfo{ID: server.host.ID(), Addrs: []ma.Multiaddr{ma.StringCast(a)}}
		if err := client.host.Connect(t.Context(), info); err == nil {
			t.Errorf("connected at %s", a)
		}
	}
	zone.mu.Lock()
	defer zone.mu.Unlock()
	for _, n := range zone.names {
		if n != "own.example" {
			t.Errorf("the DNS was asked for %s", n)
		}
	}
	if len(zone.names) == 0 {
		t.Error("the DNS was not asked for the node's own name")
	}
}

// aminoServer is a node of the public network on loopback.
func aminoServer(t *testing.T) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings(loopback), libp2p.Transport(tcp.NewTCPTransport),
		libp2p.DisableRelay(), libp2p.DisableMetrics(), libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		t.Fatal(err)
	}
	d, err := dht.New(h, dht.Mode(dht.ModeServer))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(d.Close(), h.Close()); err != nil {
			t.Error(err)
		}
	})
	return h
}

// Public nodes that know only the network's bootstrap peer find each other's
// blocks, and names.
func TestPublicMode(t *testing.T) {
	boot, other := aminoServer(t), aminoServer(t)
	if err := other.Connect(t.Context(), peer.AddrInfo{ID: boot.ID(), Addrs: boot.Addrs()}); err != nil {
		t.Fatal(err)
	}
	c := Config{Mode: Public, Bootstrap: fullAddrs(boot.ID(), boot.Addrs())}
	a, b := open(t, c), open(t, c)
	root := blockstest.Random(t, 1, 1000)
	put(t, a, root)
	if err := a.Provide(t.Context(), root.Cid()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the holder is found", func() bool {
		for p := range b.FindProviders(t.Context(), root.Cid(), 5) {
			return b.host.Connect(t.Context(), p) == nil
		}
		return false
	})
	wantBlock(t, b, root)
	for _, p := range b.Peers() {
		if want := map[string]string{a.ID(): knownDHT, boot.ID().String(): knownConfigured}[p.ID]; want != "" && p.Known != want {
			t.Errorf("%s is known by %s, want %s", p.ID, p.Known, want)
		}
	}
}

// In the public network anybody can say that a peer is at an address of our own
// network.
func TestPublicNodeDoesNotDialPrivateAddressesOfStrangers(t *testing.T) {
	friend := test.RandPeerIDFatal(t)
	c := Config{Dir: t.TempDir(), Mode: Public, Peers: []string{"/p2p/" + friend.String()}}
	s, err := c.check()
	if err != nil {
		t.Fatal(err)
	}
	n := open(t, Config{})
	g, stranger, found := newGater(s, n.found.bans), test.RandPeerIDFatal(t), test.RandPeerIDFatal(t)
	g.met(found, knownMDNS)
	for _, x := range []struct {
		id   peer.ID
		addr string
		want bool
	}{
		{stranger, "/ip4/1.1.1.1/tcp/1", true},
		{stranger, "/ip4/10.0.0.1/tcp/1", false},
		{stranger, "/ip4/127.0.0.1/tcp/1", false},
		{stranger, "/ip6/::1/tcp/1", false},
		{stranger, "/ip6/fd00::1/udp/1/quic-v1", false},
		{stranger, "/ip4/169.254.169.254/tcp/80", false},
		{friend, "/ip4/10.0.0.1/tcp/1", true},
		{found, "/ip4/10.0.0.1/tcp/1", true},
	} {
		if got := g.InterceptAddrDial(x.id, ma.StringCast(x.addr)); got != x.want {
			t.Errorf("dial %s: %v, want %v", x.addr, got, x.want)
		}
	}
}

// Strangers get less than the nodes of a rack.
func TestPublicLimits(t *testing.T) {
	n := open(t, Config{Mode: Public, NoDHT: true})
	rm := n.host.Network().ResourceManager()
	from := ma.StringCast("/ip4/192.0.2.1/tcp/4011")
	for i := range 100 {
		scope, err := rm.OpenConnection(network.DirInbound, true, from)
		if err != nil {
			if i < 2 {
				t.Errorf("connection %d: %v", i+1, err)
			}
			return
		}
		defer scope.Done()
	}
	t.Error("100 connections from one address were let in")
}
