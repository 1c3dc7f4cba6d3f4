package kubo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/stall"
)

var _ ipfs.Blocks = (*Client)(nil)

// Get implements [ipfs.Blocks] with one block/get for each CID, several at
// once over connections that stay open. It ends when no block arrived for the
// client's timeout.
func (c *Client) Get(ctx context.Context, w ipfs.Want, fn func(cid.Cid, []byte) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	want, err := ipfs.Request(w.CIDs, fn)
	if err != nil || len(want) == 0 {
		return err
	}
	watched, watch := stall.Start(ctx, c.timeout)
	defer watch.Stop()
	watch.Enter()
	g, gctx := errgroup.WithContext(watched)
	g.SetLimit(parallelGets)
	var mu sync.Mutex // one call of fn at a time
	var fnErr error   // no call of fn after it
	had := make(map[cid.Cid]bool, len(want))
	for _, id := range want {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			data, err := c.block(gctx, id)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if fnErr == nil {
				fnErr = gctx.Err()
			}
			if fnErr != nil {
				return fnErr
			}
			had[id] = true
			watch.Leave()
			defer watch.Enter()
			fnErr = fn(id, data)
			return fnErr
		})
	}
	err = g.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(context.Cause(watched), stall.ErrStalled) {
		return c.unavailable(slices.DeleteFunc(want, func(id cid.Cid) bool { return had[id] }), c.timeout, nil)
	}
	return err
}

// unavailable is the error for blocks the daemon did not give.
func (c *Client) unavailable(cids []cid.Cid, after time.Duration, err error) error {
	return &ipfs.UnavailableError{
		CIDs: cids, Asked: []string{c.addr}, After: after, Err: err,
		Hint: "see with `ipfs-stargz peers` whether a node that holds it is connected",
	}
}

// block fetches and verifies one block.
func (c *Client) block(ctx context.Context, id cid.Cid) ([]byte, error) {
	data, err := c.rawBlock(ctx, id)
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		return nil, c.unavailable([]cid.Cid{id}, 0, err)
	}
	if err := ipfs.Verify(id, data); err != nil {
		return nil, fmt.Errorf("kubo: block/get at %s: %w", c.addr, err)
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
	data, err := io.ReadAll(io.LimitReader(resp.Body, ipfs.MaxBlockSize+1))
	if err != nil {
		return nil, c.failed(ctx, "block/get", err)
	}
	return data, nil
}

// Cat returns the bytes of the UnixFS file at path (a CID, or /ipfs/CID) from
// offset on, at most length of them (all that follow when length is negative).
// The bytes come as the daemon sends them, unverified; a read fails when
// nothing arrives for the client's timeout. The caller closes the reader.
func (c *Client) Cat(ctx context.Context, path string, offset, length int64) (io.ReadCloser, error) {
	args := url.Values{"arg": {path}}
	if offset > 0 {
		args.Set("offset", strconv.FormatInt(offset, 10))
	}
	if length >= 0 {
		args.Set("length", strconv.FormatInt(length, 10))
	}
	ctx, watch := stall.Start(ctx, c.timeout)
	watch.Enter()
	defer watch.Leave()
	resp, err := c.call(ctx, "cat", args, nil, "")
	if err != nil {
		watch.Stop()
		return nil, err
	}
	return &stream{Client: c, ctx: ctx, watch: watch, resp: resp}, nil
}

// streamErrorTrailer carries an error that came after the answer had begun.
const streamErrorTrailer = "X-Stream-Error"

// stream is a body whose reads are watched.
type stream struct {
	*Client
	ctx   context.Context
	watch *stall.Watch
	resp  *http.Response
}

func (s *stream) Read(p []byte) (int, error) {
	s.watch.Enter()
	defer s.watch.Leave()
	n, err := s.resp.Body.Read(p)
	switch {
	case err == nil:
	case err == io.EOF:
		// The trailer is here with the body's end, not before.
		if msg := s.resp.Trailer.Get(streamErrorTrailer); msg != "" {
			err = s.failed(s.ctx, "cat", &Error{Message: msg})
		}
	default:
		err = s.failed(s.ctx, "cat", err)
	}
	return n, err
}

func (s *stream) Close() error {
	s.watch.Stop()
	return s.resp.Body.Close()
}
