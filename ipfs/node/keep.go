package node

import (
	"context"

	blocks "github.com/ipfs/go-block-format"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// Keep takes in a block that came from elsewhere than a peer, as if one had
// given it: it is stored soon, and served from then on. It is verified first.
func (n *Node) Keep(ctx context.Context, b blocks.Block) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if n.ctx.Err() != nil {
		return errClosed
	}
	if err := ipfs.Verify(b.Cid(), b.RawData()); err != nil {
		return err
	}
	n.direct.Arrived(b, n.kept)
	return nil
}
