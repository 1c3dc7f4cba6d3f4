package node

import (
	"context"
	"fmt"

	blocks "github.com/ipfs/go-block-format"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// Keep stores a block that another source gave, soon, and serves it from then
// on, as if a peer had given it. It is verified first.
func (n *Node) Keep(ctx context.Context, b blocks.Block) error {
	if err := ipfs.Verify(b.Cid(), b.RawData()); err != nil {
		return err
	}
	if n.ctx.Err() != nil {
		return errClosed
	}
	n.store.PutLater(b)
	if err := n.bitswap.NotifyNewBlocks(ctx, b); err != nil {
		return fmt.Errorf("node: peers that wait for block %s were not told of it: %w", b.Cid(), err)
	}
	return nil
}
