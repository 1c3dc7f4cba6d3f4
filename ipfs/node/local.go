package node

import (
	"context"
	"fmt"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/direct"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store"
)

// maxFileBytes bounds the files whose parts are told to others.
const maxFileBytes = 1 << 40

// local is what the node has itself, for direct.Exchange to serve.
type local struct {
	store  *store.Store
	tables string
}

var (
	_ direct.Store = local{}
	_ ipfs.Blocks  = local{}
)

// View implements [direct.Store].
func (l local) View(c cid.Cid, fn func(data []byte) error) error {
	err := l.store.View(c, fn)
	if ipld.IsNotFound(err) {
		return fmt.Errorf("node: block %s: %w", c, direct.ErrNotHeld)
	}
	return err
}

// Holds implements [direct.Store].
func (l local) Holds(c cid.Cid) bool {
	if _, ok := ipfs.Known(c); ok {
		return true
	}
	ok, err := l.store.Has(context.Background(), c)
	return ok && err == nil
}

// Leaves implements [direct.Store].
func (l local) Leaves(root cid.Cid) ([]ipfs.Leaf, error) {
	f, err := ipfs.OpenFile(context.Background(), l, l.tables, root, maxFileBytes)
	if err != nil {
		return nil, err
	}
	leaves := make([]ipfs.Leaf, 0, f.NumLeaves())
	for leaf := range f.Leaves() {
		leaves = append(leaves, leaf)
	}
	return leaves, nil
}

// Get implements [ipfs.Blocks] without asking anyone.
func (l local) Get(ctx context.Context, w ipfs.Want, fn func(c cid.Cid, data []byte) error) error {
	want, err := ipfs.Request(w.CIDs, fn)
	if err != nil {
		return err
	}
	for _, c := range want {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.View(c, func(data []byte) error { return fn(c, data) }); err != nil {
			return err
		}
	}
	return nil
}

// Local returns the node's own blocks, where they are pinned, counted and
// collected. It is the node's: it closes it.
func (n *Node) Local() *store.Store { return n.store }
