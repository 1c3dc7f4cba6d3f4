package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/test"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
)

// dial tries to connect one node with another, whatever its own gater says of
// the other's.
func dial(t *testing.T, from, to *Node) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return from.host.Connect(ctx, peer.AddrInfo{ID: to.host.ID(), Addrs: to.host.Addrs()})
}

// notConnected checks that b never lists a: a refused dialer may believe for a
// moment that it is connected, for in TLS the server refuses after the client
// is done.
func notConnected(t *testing.T, from, to *Node, err error) {
	t.Helper()
	eventually(t, "the connection is refused or closed", func() bool {
		return err != nil || len(from.host.Network().ConnsToPeer(to.host.ID())) == 0
	})
	if c := to.PeersConnected(); len(c) > 0 {
		t.Errorf("connected: %v", c)
	}
}

func TestOnlyListedPeers(t *testing.T) {
	client, server := pair(t)
	connected(t, server, 1)
	alone := open(t, Config{})

	// In: a stranger that would dial anyone is refused.
	stranger := open(t, Config{Peers: append(server.Addrs(), alone.Addrs()...)})
	err := dial(t, stranger, server)
	eventually(t, "the stranger is refused", func() bool {
		return err != nil || len(stranger.host.Network().ConnsToPeer(server.host.ID())) == 0
	})
	for _, a := range server.PeersConnected() {
		if !strings.HasSuffix(a, client.ID()) {
			t.Errorf("connected: %s", a)
		}
	}
	// In: without peers and key, nobody at all.
	notConnected(t, stranger, alone, dial(t, stranger, alone))
	// Out: we dial nobody who is not listed.
	if err := dial(t, client, alone); err == nil {
		t.Error("a node dialed a peer that is not listed")
	}
	// And it gets nothing.
	b := blockstest.Random(t, 1, 1000)
	put(t, server, b)
	var u *ipfs.UnavailableError
	if _, err := fetch(t, stranger, b.Cid()); !errors.As(err, &u) {
		t.Errorf("the stranger's Get: %v, want an UnavailableError", err)
	}
	wantBlock(t, client, b)
}

func swarmKey(t *testing.T, digit string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "swarm.key")
	if err := os.WriteFile(path, []byte("/key/swarm/psk/1.0.0/\n/base16/\n"+strings.Repeat(digit, 64)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSwarmKey(t *testing.T) {
	key := swarmKey(t, "a")
	server := open(t, Config{SwarmKeyFile: key})
	b := blockstest.Random(t, 1, 1000)
	put(t, server, b)

	// Whoever has the key may connect, though the server lists nobody.
	client := open(t, Config{SwarmKeyFile: key, Peers: server.Addrs()})
	wantBlock(t, client, b)

	for name, stranger := range map[string]*Node{
		"another key": open(t, Config{SwarmKeyFile: swarmKey(t, "b"), Peers: server.Addrs()}),
		"no key":      open(t, Config{Peers: server.Addrs()}),
	} {
		if err := dial(t, stranger, server); err == nil {
			t.Errorf("%s: connected", name)
		}
		var u *ipfs.UnavailableError
		if _, err := fetch(t, stranger, b.Cid()); !errors.As(err, &u) || len(u.Asked) > 0 {
			t.Errorf("%s: Get: %v, want an UnavailableError that asked nobody", name, err)
		}
	}
	if c := server.PeersConnected(); len(c) != 1 {
		t.Errorf("connected: %v, want the client alone", c)
	}
}

// A rack is more than the eight connections libp2p allows one address. Loopback
// is exempt there, so this looks at the addresses of another network.
func TestManyPeersBehindOneAddress(t *testing.T) {
	n := open(t, Config{})
	rm := n.host.Network().ResourceManager()
	from := ma.StringCast("/ip4/192.0.2.1/tcp/4011")
	for i := range 100 {
		scope, err := rm.OpenConnection(network.DirInbound, true, from)
		if err != nil {
			t.Fatalf("connection %d: %v", i+1, err)
		}
		defer scope.Done()
		if err := scope.SetPeer(test.RandPeerIDFatal(t)); err != nil { // the handshake is over
			t.Fatalf("connection %d: %v", i+1, err)
		}
	}
}
