package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
)

// This file has what the tests of the IPFS plane share: nodes with the daemon
// alone, without containerd, whose RPC they read and write.

// newIPFSBed makes a bed of nodes whose daemons can be started.
func newIPFSBed(t *testing.T, o testbed.Options) *testbed.Bed {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	racy, err := daemon()
	if err != nil {
		t.Fatal(err)
	}
	o.Binary, o.Daemon, o.NoContainerd = bin, racy, true
	return newBed(t, o)
}

// startDaemon starts a node's daemon and gives its multiaddr.
func startDaemon(t *testing.T, n *testbed.Node, conf testbed.DaemonConfig) string {
	t.Helper()
	if err := n.StartDaemon(t.Context(), conf); err != nil {
		t.Fatal(err)
	}
	addr, err := n.Multiaddr(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// rpc is a client of a node's daemon. It has more patience than any of them.
func rpc(t *testing.T, n *testbed.Node) *kubo.Client {
	t.Helper()
	c, err := kubo.New("/unix"+n.APISocket(), kubo.WithTimeout(2*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// randomFile is a file's bytes, which depend on seed.
func randomFile(seed uint64, size int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	data := make([]byte, size)
	rand.NewChaCha8(key).Read(data) // never fails
	return data
}

// addFile gives a node a file, in leaves of 256 KiB.
func addFile(t *testing.T, n *testbed.Node, data []byte) cid.Cid {
	t.Helper()
	var root cid.Cid
	err := rpc(t, n).ImportCAR(t.Context(), nil, func(put ipfs.PutFunc) (err error) {
		root, _, err = importer.File(t.Context(), bytes.NewReader(data), put)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// fileCID is the root that addFile would give, of a file that nobody has.
func fileCID(t *testing.T, data []byte) cid.Cid {
	t.Helper()
	root, _, err := importer.File(t.Context(), bytes.NewReader(data), func(context.Context, blocks.Block) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// cat reads a range of a file through a node; length < 0 is all from offset on.
func cat(ctx context.Context, c *kubo.Client, root cid.Cid, offset, length int64) (data []byte, err error) {
	r, err := c.Cat(ctx, root.String(), offset, length)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func hash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
