package node

import (
	"errors"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
)

// What another source gave is had from the node at once, and a lie is not.
func TestKeep(t *testing.T) {
	n, err := Open(t.Context(), Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	b, other := blockstest.Random(t, 1, 1000), blockstest.Random(t, 2, 1000)
	if err := n.Keep(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	got := 0
	err = n.Get(t.Context(), ipfs.Want{CIDs: []cid.Cid{b.Cid()}}, func(cid.Cid, []byte) error { got++; return nil })
	if err != nil || got != 1 {
		t.Errorf("%d blocks, %v", got, err)
	}
	lie, err := blocks.NewBlockWithCid(b.RawData(), other.Cid())
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Keep(t.Context(), lie); !errors.Is(err, ipfs.ErrBadBlock) {
		t.Errorf("a lie: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Keep(t.Context(), b); !errors.Is(err, errClosed) {
		t.Errorf("closed: %v", err)
	}
}
