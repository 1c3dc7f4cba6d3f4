package serve_test

import (
	"testing"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
	"github.com/ipfs-stargz/ipfs-stargz/serve"
)

func TestInfo(t *testing.T) {
	d := start(t)
	id, err := d.client.ID(t.Context())
	if err != nil || id.ID != d.ID() || len(id.Addresses) != 1 || id.Addresses[0] != d.Addrs()[0] {
		t.Errorf("ID: %+v, %v", id, err)
	}
	v, err := d.client.Version(t.Context())
	if err != nil || v.Version != "1.2.3" || v.Commit != "abc" {
		t.Errorf("Version: %+v, %v", v, err)
	}
	if peers, err := d.client.Peers(t.Context()); err != nil || len(peers) != 0 {
		t.Errorf("Peers: %+v, %v", peers, err)
	}
}

type fakeSwarm struct{}

func (fakeSwarm) ID() string      { return "QmMe" }
func (fakeSwarm) Addrs() []string { return nil }
func (fakeSwarm) PeersConnected() []string {
	return []string{"/ip4/192.0.2.1/tcp/4011/p2p/QmOther"}
}

func TestPeers(t *testing.T) {
	_, client := listen(t, serve.NewHandler(serve.Config{Swarm: fakeSwarm{}}))
	peers, err := client.Peers(t.Context())
	if want := (kubo.Peer{Addr: "/ip4/192.0.2.1/tcp/4011", Peer: "QmOther"}); err != nil || len(peers) != 1 || peers[0] != want {
		t.Errorf("Peers: %+v, %v; want %+v", peers, err, want)
	}
}
