package node

import (
	"bytes"
	"context"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store/pins"
)

// give puts a file into a node, pinned as a push pins it.
func give(t *testing.T, n *Node, data []byte) (root cid.Cid) {
	t.Helper()
	root, _, err := importer.File(t.Context(), bytes.NewReader(data), func(ctx context.Context, b blocks.Block) error { return n.Put(ctx, b) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Local().Pin(t.Context(), pins.Pin{Root: root, Parts: []cid.Cid{root}}); err != nil {
		t.Fatal(err)
	}
	return root
}

func read(t *testing.T, n *Node, root cid.Cid, want []byte) {
	t.Helper()
	f, err := ipfs.OpenFile(t.Context(), n, n.Tables(), root, int64(len(want)))
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := f.Copy(t.Context(), &got, 0, f.Size()); err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Fatalf("%d bytes of %d, %v", got.Len(), len(want), err)
	}
}

// isTold tells whether a node announces a root.
func isTold(n *Node, root cid.Cid) bool {
	n.holders.mu.Lock()
	defer n.holders.mu.Unlock()
	return n.holders.told[string(root.Hash())].Defined()
}

// A node reads a file of a holder that it does not know, found by the root.
func TestReadsFromUnknownHolder(t *testing.T) {
	key := swarmKey(t, "a")
	hub := open(t, Config{SwarmKeyFile: key})
	a := open(t, Config{SwarmKeyFile: key, Peers: hub.Addrs()})
	b := open(t, Config{SwarmKeyFile: key, Peers: hub.Addrs()})
	data := blockstest.Random(t, 1, 3<<20).RawData()
	root := give(t, a, data)
	eventually(t, "the holder is announced", func() bool {
		for p := range b.FindProviders(t.Context(), root, 1) {
			return p.ID == a.host.ID()
		}
		return false
	})
	read(t, b, root, data)
	if s := hub.Stats(); s.BlocksSent > 0 {
		t.Errorf("the hub, which has nothing, sent %d blocks", s.BlocksSent)
	}
}

// What a node has a part of it announces, also after a restart, and no longer
// when it is evicted; those who watch learn that too.
func TestAnnouncesWhatItHas(t *testing.T) {
	key := swarmKey(t, "a")
	a := open(t, Config{SwarmKeyFile: key})
	dir := t.TempDir()
	b, err := Open(t.Context(), Config{Dir: dir, SwarmKeyFile: key, Peers: a.Addrs()})
	if err != nil {
		t.Fatal(err)
	}
	data := blockstest.Random(t, 1, 1<<20).RawData()
	root := give(t, a, data)
	if !isTold(a, root) {
		eventually(t, "what is pinned is announced", func() bool { return isTold(a, root) })
	}
	f, err := ipfs.OpenFile(t.Context(), b, b.Tables(), root, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(t.Context(), make([]byte, 1), 0); err != nil {
		t.Fatal(err)
	}
	if !isTold(b, root) {
		t.Error("a file of which a part is here is not announced")
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = open(t, Config{Dir: dir, SwarmKeyFile: key, Peers: a.Addrs()})
	eventually(t, "it is announced again", func() bool { return isTold(b, root) })
	if _, err := b.Local().Collect(t.Context(), 0, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is withdrawn", func() bool { return !isTold(b, root) })
	read(t, b, root, data)
}
