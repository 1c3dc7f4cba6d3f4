package serve_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/node"
	"github.com/ipfs-stargz/ipfs-stargz/serve"
)

// known starts a node whose RPC knows of peers and names, with a listed peer
// that never comes.
func known(t *testing.T) (*node.Node, *kubo.Client) {
	t.Helper()
	n, err := node.Open(t.Context(), node.Config{
		Dir: filepath.Join(t.TempDir(), "ipfs"), Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Peers: []string{"/p2p/" + nobody},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	_, client := listen(t, serve.NewHandler(serve.Config{Store: n, Swarm: n, Peers: n, Names: n.Names()}))
	return n, client
}

const nobody = "12D3KooWQQe2yFFNE4iqMz1HFBhd2CGN4f5XD9MgB4YNBLyjsqt8"

func TestNamesByRPC(t *testing.T) {
	_, client := known(t)
	const path = "/ipfs/bafkreic2tszstr447mgmr3slu47e5judrld46g6oplkyx7px2dpnx6zeqi"
	for range 2 { // the second time it is there
		if err := client.EnsureKey(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := client.Keys(t.Context())
	if err != nil || len(keys) != 2 || keys[0].Name != "self" || keys[1].Name != "web" {
		t.Fatalf("Keys: %+v, %v", keys, err)
	}
	p, err := client.Publish(t.Context(), "web", path)
	if err != nil || p.Name != keys[1].ID || p.Value != path || !p.Later {
		t.Errorf("Publish while nobody is there: %+v, %v", p, err)
	}
	if got, _, err := client.Resolve(t.Context(), p.Name); err != nil || got != path {
		t.Errorf("Resolve: %q, %v", got, err)
	}
	if got, _, err := client.Resolve(t.Context(), nobody); err == nil || !strings.Contains(err.Error(), "nobody knows the name") {
		t.Errorf("Resolve of what nobody published: %q, %v", got, err)
	}
	if p, err := client.Publish(t.Context(), "none", path); err == nil || !strings.Contains(err.Error(), "no key of that name") {
		t.Errorf("Publish with a key that is not there: %+v, %v", p, err)
	}
	if err := client.EnsureKey(t.Context(), "a/b"); err == nil {
		t.Error("a key named a/b was made")
	}
}

func TestPeersAndBansByRPC(t *testing.T) {
	n, client := known(t)
	peers, err := client.PeersKnown(t.Context())
	if err != nil || len(peers) > 0 {
		t.Errorf("PeersKnown: %+v, %v", peers, err)
	}
	id, err := peer.Decode(nobody)
	if err != nil {
		t.Fatal(err)
	}
	n.Ban(id, "wrong bytes")
	bans, err := client.Bans(t.Context())
	if err != nil || len(bans) != 1 || bans[0].ID != nobody || bans[0].Reason != "wrong bytes" || time.Until(bans[0].Until) < 24*time.Hour {
		t.Errorf("Bans: %+v, %v", bans, err)
	}
	if err := client.Forgive(t.Context(), nobody); err != nil {
		t.Error(err)
	}
	if err := client.Forgive(t.Context(), nobody); err == nil || !strings.Contains(err.Error(), "not banned") {
		t.Errorf("Forgive again: %v", err)
	}
	if err := client.Forgive(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "required") {
		t.Errorf("Forgive nobody: %v", err)
	}
}

// swarmOf is what the RPC tells of peers that are not there.
type swarmOf struct{ list []ipfs.Peer }

func (s swarmOf) Peers() []ipfs.Peer { return s.list }
func (swarmOf) Bans() []ipfs.Ban     { return nil }
func (swarmOf) Forgive(string) error { return nil }

func TestPeersKnownByRPC(t *testing.T) {
	want := []ipfs.Peer{
		{ID: "QmA", Addr: "/ip4/192.0.2.1/tcp/4001", Known: "dns", Agent: "kubo/0.40", Latency: 1500 * time.Microsecond},
		{ID: "QmB", Addr: "/ip4/192.0.2.2/tcp/4001", Known: "inbound", Inbound: true},
	}
	_, client := listen(t, serve.NewHandler(serve.Config{Swarm: fakeSwarm{}, Peers: swarmOf{want}}))
	if got, err := client.PeersKnown(t.Context()); err != nil || !slices.Equal(got, want) {
		t.Errorf("PeersKnown: %+v, %v", got, err)
	}
	// And as other clients of Kubo's RPC read it.
	peers, err := client.Peers(t.Context())
	if err != nil || len(peers) != 2 || peers[0] != (kubo.Peer{Addr: want[0].Addr, Peer: "QmA"}) {
		t.Errorf("Peers: %+v, %v", peers, err)
	}
}
