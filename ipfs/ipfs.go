// Package ipfs reads and writes files of the IPFS world for the layers above,
// which want one thing of it: the bytes of a range of a CID, verified.
//
// The seam below is [Blocks]: get these blocks by CID. The embedded node
// (ipfs/node), a running Kubo daemon (ipfs/kubo) and an in-memory store for
// tests implement it and pass one conformance suite (ipfs/blockstest).
// Above the seam a [File] holds the leaf table of a UnixFS file and fetches,
// for a range, exactly the leaves that cover it, all at once.
package ipfs

import (
	"context"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

// MaxBlockSize is the largest block that is accepted from or given to anyone,
// in bytes (the limit of bitswap's own specification).
const MaxBlockSize = 2 << 20

// Blocks gets blocks by CID, from wherever the implementation finds them.
// Implementations are safe for concurrent use.
type Blocks interface {
	// Get fetches the blocks that are wanted, in parallel and in no particular
	// order, and calls fn once for each distinct CID as it arrives, one call
	// at a time. The data passed was verified against the CID's hash; it is
	// lent: fn must not change it, nor use it after its return.
	//
	// Get returns when every block has been handed over, or with the first
	// error: that of fn as it is; ctx.Err() when ctx ends; an
	// [*UnavailableError] when a block could not be had from anyone in the
	// implementation's own bounded time. What can be had at once has been handed
	// over before that.
	Get(ctx context.Context, want Want, fn func(c cid.Cid, data []byte) error) error
}

// Want says which blocks to get, and what helps to get them soon.
type Want struct {
	CIDs []cid.Cid
	// Root is the file that the blocks are parts of, if it is known: whoever
	// holds one part of a file is asked for the others.
	Root cid.Cid
	// Bulk says that nobody waits for these blocks now: they go behind those
	// that somebody waits for, and are spread over all who hold them.
	Bulk bool
	// Raised, where it is set, is closed when somebody comes to wait for blocks
	// that are wanted in bulk: from then on they are as if Bulk had not been set,
	// for those who can change that under way.
	Raised <-chan struct{}
}

// PutFunc stores one block. The block's CID is taken as it is: whoever stores
// blocks of others checks them with [Verify] first.
type PutFunc func(ctx context.Context, b blocks.Block) error
