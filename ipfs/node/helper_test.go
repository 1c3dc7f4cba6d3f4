package node

import (
	"bytes"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const loopback = "/ip4/127.0.0.1/tcp/0"

// open starts a node that ends with the test.
func open(t testing.TB, c Config) *Node {
	t.Helper()
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	if c.Listen == nil {
		c.Listen = []string{loopback}
	}
	if c.FetchTimeout == 0 {
		c.FetchTimeout = 2 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	n, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// identity makes the identity of a node before it runs, so that two nodes can
// know each other.
func identity(t testing.TB, dir string) string {
	t.Helper()
	key, err := loadIdentity(filepath.Join(dir, "identity.key"))
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

// pair starts two nodes that list each other; the first dials the second.
func pair(t testing.TB) (client, server *Node) {
	t.Helper()
	dir := t.TempDir()
	server = open(t, Config{Peers: []string{"/p2p/" + identity(t, dir)}})
	client = open(t, Config{Dir: dir, Peers: server.Addrs()})
	return client, server
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("did not happen within 30 s: %s", what)
		}
	}
}

func connected(t testing.TB, n *Node, peers int) {
	t.Helper()
	eventually(t, "the peers connect", func() bool { return len(n.PeersConnected()) == peers })
}

func put(t testing.TB, n *Node, bs ...blocks.Block) {
	t.Helper()
	if err := n.Put(t.Context(), bs...); err != nil {
		t.Fatal(err)
	}
}

func fetch(t testing.TB, n *Node, c cid.Cid) ([]byte, error) {
	t.Helper()
	var got []byte
	err := n.Get(t.Context(), ipfs.Want{CIDs: []cid.Cid{c}}, func(_ cid.Cid, data []byte) error {
		got = bytes.Clone(data)
		return nil
	})
	return got, err
}

func wantBlock(t testing.TB, n *Node, b blocks.Block) {
	t.Helper()
	if got, err := fetch(t, n, b.Cid()); err != nil || !bytes.Equal(got, b.RawData()) {
		t.Errorf("Get: %d bytes, %v", len(got), err)
	}
}
