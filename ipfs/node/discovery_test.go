package node

import (
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/names"
)

// Nodes with a key that know one of them find each other by what they hold.
func TestHoldersFoundInPrivateDHT(t *testing.T) {
	key := swarmKey(t, "a")
	hub := open(t, Config{SwarmKeyFile: key})
	a := open(t, Config{SwarmKeyFile: key, Peers: hub.Addrs()})
	b := open(t, Config{SwarmKeyFile: key, Peers: hub.Addrs()})
	root := blockstest.Random(t, 1, 1000)
	put(t, a, root)
	if err := a.Provide(t.Context(), root.Cid()); err != nil {
		t.Fatal(err)
	}
	var holder peer.AddrInfo
	eventually(t, "the holder is found", func() bool {
		for p := range b.FindProviders(t.Context(), root.Cid(), 5) {
			holder = p
		}
		return holder.ID == a.host.ID()
	})
	if err := b.host.Connect(t.Context(), holder); err != nil {
		t.Fatal(err)
	}
	wantBlock(t, b, root)
	a.Withdraw(root.Cid())
	// And by name.
	name, err := "", error(nil)
	eventually(t, "the name is published", func() bool {
		name, err = a.Names().Publish(t.Context(), "/ipfs/"+root.Cid().String(), names.PublishOptions{})
		return err == nil
	})
	if r, err := b.Names().Resolve(t.Context(), name); err != nil || r.Value != "/ipfs/"+root.Cid().String() || r.Stale {
		t.Errorf("Resolve: %+v, %v", r, err)
	}
}

// The peers behind a name of the DNS are connected, and known by it.
func TestPeersByName(t *testing.T) {
	key := swarmKey(t, "a")
	server := open(t, Config{SwarmKeyFile: key})
	port, err := server.host.Addrs()[0].ValueForProtocol(ma.P_TCP)
	if err != nil {
		t.Fatal(err)
	}
	zone := &asked{ip: map[string][]net.IPAddr{"pods.example": {{IP: net.IPv4(127, 0, 0, 1)}}}}
	by := []string{"/dns4/pods.example/tcp/" + port}
	client := open(t, Config{SwarmKeyFile: key, Peers: by, Resolver: zone})
	connected(t, client, 1)
	if p := client.Peers()[0]; p.ID != server.ID() || p.Known != knownDNS || p.Inbound {
		t.Errorf("peer: %+v", p)
	}
	eventually(t, "the other side knows it", func() bool {
		ps := server.Peers()
		return len(ps) == 1 && ps[0].Known == knownInbound && ps[0].Inbound && ps[0].Agent == "ipfs-stargz"
	})
	// The same name, but another key; and a list that does not have who answers.
	stranger := open(t, Config{SwarmKeyFile: swarmKey(t, "b"), Peers: by, Resolver: zone})
	listing := open(t, Config{Peers: append(by, "/p2p/"+identity(t, t.TempDir())), Resolver: zone})
	eventually(t, "both have asked", func() bool {
		zone.mu.Lock()
		defer zone.mu.Unlock()
		return len(zone.names) >= 3
	})
	if a, b := stranger.Peers(), listing.Peers(); len(a)+len(b) > 0 {
		t.Errorf("connected: %v and %v", a, b)
	}
}

// A peer that lies is dropped, in both directions, even one that is configured,
// and over a restart; until it is forgiven.
func TestBans(t *testing.T) {
	dir, serverDir := t.TempDir(), t.TempDir()
	server := open(t, Config{Dir: serverDir, Peers: []string{"/p2p/" + identity(t, dir)}})
	config := Config{Dir: dir, Peers: server.Addrs()}
	client := open(t, config)
	connected(t, client, 1)
	connected(t, server, 1)
	client.Ban(server.host.ID(), "wrong bytes for a block")
	connected(t, client, 0)
	notConnected(t, server, client, dial(t, server, client))
	if err := dial(t, client, server); err == nil {
		t.Error("the node dialed a banned peer")
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	client = open(t, config)
	if b := client.Bans(); len(b) != 1 || b[0].ID != server.ID() || b[0].Reason != "wrong bytes for a block" {
		t.Errorf("Bans: %+v", b)
	}
	notConnected(t, server, client, dial(t, server, client))
	if err := client.Forgive("nonsense"); err == nil {
		t.Error("nonsense was forgiven")
	}
	if err := client.Forgive(server.ID()); err != nil {
		t.Error(err)
	}
	connected(t, client, 1)
	if p := client.Peers()[0]; p.Known != knownConfigured {
		t.Errorf("peer: %+v", p)
	}
}

// Without a key QUIC may be used, and the list holds there too.
func TestQUIC(t *testing.T) {
	dir := t.TempDir()
	server := open(t, Config{Listen: []string{quicAddr}, Peers: []string{"/p2p/" + identity(t, dir)}})
	client := open(t, Config{Dir: dir, Peers: server.Addrs()})
	b := blockstest.Random(t, 1, 300_000)
	put(t, server, b)
	wantBlock(t, client, b)
	if a := client.PeersConnected(); len(a) != 1 || !strings.Contains(a[0], "/quic-v1/") {
		t.Errorf("connected: %v", a)
	}
	stranger := open(t, Config{Peers: server.Addrs()})
	if err := dial(t, stranger, server); err == nil {
		eventually(t, "the stranger is refused", func() bool { return len(stranger.Peers()) == 0 })
	}
	for _, p := range server.Peers() {
		if p.ID != client.ID() {
			t.Errorf("connected: %+v", p)
		}
	}
}

func TestTCPIsDialedFirst(t *testing.T) {
	dir := t.TempDir()
	server := open(t, Config{Listen: []string{quicAddr, loopback}, Peers: []string{"/p2p/" + identity(t, dir)}})
	client := open(t, Config{Dir: dir, Peers: server.Addrs()})
	connected(t, client, 1)
	if a := client.PeersConnected(); !strings.Contains(a[0], "/tcp/") {
		t.Errorf("connected: %v", a)
	}
	addrs := []ma.Multiaddr{
		ma.StringCast("/ip4/10.0.0.1/udp/1/quic-v1"), ma.StringCast("/ip4/10.0.0.1/tcp/1"), ma.StringCast("/ip6/fd00::1/tcp/1"),
	}
	ranked := rankDials(slices.Clone(addrs))
	if len(ranked) != 3 {
		t.Fatalf("%d of 3 addresses are left", len(ranked))
	}
	for _, d := range ranked {
		if quic := has(d.Addr, ma.P_UDP); quic != (d.Delay >= quicLater) {
			t.Errorf("%s after %v", d.Addr, d.Delay)
		}
	}
	if alone := rankDials(addrs[:1]); alone[0].Delay != 0 {
		t.Errorf("QUIC alone waits %v", alone[0].Delay)
	}
}

// All nodes of a rack connect to one at once, from one address, and each gets a
// block.
func TestWholeRackAtOnce(t *testing.T) {
	const nodes = 64
	key := swarmKey(t, "a")
	hub := open(t, Config{SwarmKeyFile: key})
	b := blockstest.Random(t, 1, 10_000)
	put(t, hub, b)
	var all sync.WaitGroup
	for range nodes {
		n := open(t, Config{SwarmKeyFile: key, Peers: hub.Addrs(), NoDHT: true, FetchTimeout: 60e9})
		all.Go(func() { wantBlock(t, n, b) })
	}
	all.Wait()
	if n := len(hub.host.Network().Peers()); n != nodes {
		t.Errorf("%d nodes are connected, want %d", n, nodes)
	}
	for _, c := range hub.host.Network().Conns() {
		if c.Stat().Direction != network.DirInbound {
			t.Errorf("%s was dialed", c.RemotePeer())
		}
	}
}
