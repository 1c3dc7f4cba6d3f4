package kubo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/fetch"
)

var _ ipfs.Blocks = (*Client)(nil)

// Get implements [ipfs.Blocks] with one block/get for each CID, several at
// once over connections that stay open. It ends when no block arrived for the
// client's timeout. The daemon asks its own peers for what it does not hold.
func (c *Client) Get(ctx context.Context, w ipfs.Want, fn func(cid.Cid, []byte) error) error {
	slots := c.demand
	if w.Bulk {
		slots = c.bulk
	}
	if c.external && w.Root.Defined() {
		stop := c.searchLater(ctx, w.Root)
		defer stop()
	}
	return fetch.Source{
		Block: func(ctx context.Context, id cid.Cid) ([]byte, error) {
			if err := slots.Acquire(ctx, 1); err != nil {
				return nil, err
			}
			defer slots.Release(1)
			return c.block(ctx, id)
		},
		Parallel:    parallelGets,
		Timeout:     c.timeout,
		Unavailable: c.unavailable,
	}.Get(ctx, w, fn)
}

// unavailable is the error for blocks the daemon did not give.
func (c *Client) unavailable(cids []cid.Cid, after time.Duration, err error) *ipfs.UnavailableError {
	hint := "see with `ipfs-stargz peers` whether a node that holds it is connected"
	if c.external {
		hint = "see with `ipfs routing findprovs` whether anybody provides it to that Kubo"
	}
	return &ipfs.UnavailableError{CIDs: cids, Asked: []string{c.Addr()}, After: after, Err: err, Hint: hint}
}

// block fetches and verifies one block.
func (c *Client) block(ctx context.Context, id cid.Cid) ([]byte, error) {
	data, err := c.rawBlock(ctx, id)
	if err != nil {
		if ctx.Err() != nil || errors.Is(err, fetch.ErrDown) {
			return nil, err
		}
		return nil, c.unavailable([]cid.Cid{id}, 0, err)
	}
	if err := ipfs.Verify(id, data); err != nil {
		return nil, fmt.Errorf("kubo: block/get at %s: %w", c.Addr(), err)
	}
	return data, nil
}

// rawBlock fetches what the daemon says is the block, one byte more than a
// block may have at most.
func (c *Client) rawBlock(ctx context.Context, id cid.Cid) ([]byte, error) {
	resp, err := c.call(ctx, "block/get", url.Values{
		"arg":     {id.String()},
		"timeout": {c.timeout.String()}, // so that the daemon does not go on alone
	}, nil, "")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := fetch.ReadBlock(resp.Body, cmp.Or(resp.Header.Get("X-Content-Length"), resp.Header.Get("Content-Length")))
	if err != nil {
		return nil, c.failed(ctx, "block/get", err)
	}
	return data, nil
}
