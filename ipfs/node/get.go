package node

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"golang.org/x/sync/errgroup"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/stall"
)

// errClosed is returned by a Get of a node that has been closed.
var errClosed = errors.New("node: closed")

// Get implements [ipfs.Blocks]: from the store what is there, the rest by
// bitswap. Blocks from the network are kept, and served to others. A Get that
// gets no block for Config.FetchTimeout ends with an [*ipfs.UnavailableError].
func (n *Node) Get(ctx context.Context, w ipfs.Want, fn func(c cid.Cid, data []byte) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	want, err := ipfs.Request(w.CIDs, fn)
	if err != nil {
		return err
	}
	var here, away []cid.Cid
	for _, c := range want {
		ok, err := n.store.Has(ctx, c)
		if err != nil {
			return err
		}
		if ok {
			here = append(here, c)
		} else {
			away = append(away, c)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	out := &output{ctx: gctx, fn: fn}
	var damaged []cid.Cid
	if len(away) > 0 {
		g.Go(func() error { return n.fetch(gctx, away, out) })
	}
	if len(here) > 0 {
		g.Go(func() (err error) {
			damaged, err = n.load(gctx, here, out)
			return err
		})
	}
	err = g.Wait()
	if err == nil && len(damaged) > 0 {
		out.ctx = ctx
		err = n.fetch(ctx, damaged, out)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// output calls fn, one block at a time, until its context ends or fn fails.
type output struct {
	ctx context.Context
	mu  sync.Mutex
	fn  func(c cid.Cid, data []byte) error
	err error // fn's
}

func (o *output) give(c cid.Cid, data []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return o.err
	}
	if err := o.ctx.Err(); err != nil {
		return err
	}
	o.err = o.fn(c, data)
	return o.err
}

// load hands over blocks from the store, read and verified in parallel. It
// returns those that turned out to be damaged or gone.
func (n *Node) load(ctx context.Context, cids []cid.Cid, out *output) (damaged []cid.Cid, err error) {
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, c := range cids {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			b, err := n.store.Get(ctx, c)
			if ipld.IsNotFound(err) {
				mu.Lock()
				defer mu.Unlock()
				damaged = append(damaged, c)
				return nil
			}
			if err != nil {
				return err
			}
			return out.give(c, b.RawData())
		})
	}
	return damaged, g.Wait()
}

// fetch hands over blocks from the network. A session that brings nothing for
// a while is replaced by a new one, which asks all peers again: one whose peers
// have left would wait for ever.
func (n *Node) fetch(ctx context.Context, cids []cid.Cid, out *output) error {
	if len(n.s.peers) == 0 && n.s.key == nil {
		return n.unavailable(cids, 0) // nobody can ever connect
	}
	watched, watch := stall.Start(ctx, n.s.FetchTimeout)
	defer watch.Stop()
	watch.Enter()
	stop := context.AfterFunc(n.ctx, watch.Stop)
	defer stop()

	missing := make(map[cid.Cid]bool, len(cids))
	for _, c := range cids {
		missing[c] = true
	}
	retry := min(max(n.s.FetchTimeout/4, 100*time.Millisecond), 5*time.Second)
	for len(missing) > 0 {
		if len(n.host.Network().Peers()) < len(n.s.peers) {
			n.peering.wake()
		}
		rest := slices.DeleteFunc(slices.Clone(cids), func(c cid.Cid) bool { return !missing[c] })
		err := n.round(watched, rest, retry, func(b blocks.Block) error {
			if !missing[b.Cid()] {
				return nil
			}
			delete(missing, b.Cid())
			watch.Leave()
			defer watch.Enter()
			return n.arrived(ctx, b, out)
		})
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case n.ctx.Err() != nil:
			return errClosed
		case watched.Err() != nil:
			return n.unavailable(slices.DeleteFunc(rest, func(c cid.Cid) bool { return !missing[c] }), n.s.FetchTimeout)
		}
	}
	return nil
}

// round asks for blocks in one session until all are there, ctx ends, or
// nothing arrives for the time of retry. Only fn's errors are returned.
func (n *Node) round(ctx context.Context, cids []cid.Cid, retry time.Duration, fn func(blocks.Block) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := n.sessions.get(len(cids), n.peering.losses.Load())
	ch, err := s.GetBlocks(ctx, cids)
	if err != nil {
		n.sessions.drop(s)
		return nil // the session or ctx has ended: the caller looks which
	}
	idle := time.NewTimer(retry)
	defer idle.Stop()
	for range cids {
		select {
		case b, ok := <-ch:
			if !ok {
				n.sessions.drop(s)
				return nil
			}
			if err := fn(b); err != nil {
				n.sessions.drop(s)
				return err
			}
			idle.Reset(retry)
		case <-idle.C:
			n.sessions.drop(s)
			return nil
		}
	}
	n.sessions.put(s)
	return nil
}

// arrived handles a block from the network. Its hash needs no check: bitswap
// computes the CID of what it receives. The reader gets it before the disk.
func (n *Node) arrived(ctx context.Context, b blocks.Block, out *output) error {
	if len(b.RawData()) > ipfs.MaxBlockSize {
		return fmt.Errorf("node: block %s of %d bytes is %w: the limit is %d bytes", b.Cid(), len(b.RawData()), ipfs.ErrTooLarge, ipfs.MaxBlockSize)
	}
	n.blocksFetched.Add(1)
	n.bytesFetched.Add(int64(len(b.RawData())))
	err := out.give(b.Cid(), b.RawData())
	// It was paid for, so it is kept even if the reader wants no more.
	n.store.PutLater(b)
	if notifyErr := n.bitswap.Server.NotifyNewBlocks(ctx, b); notifyErr != nil {
		n.s.Log.Debug("peers that wait for a block were not told of it", "cid", b.Cid().String(), "err", notifyErr)
	}
	return err
}

// unavailable tells what is missing and who was asked.
func (n *Node) unavailable(cids []cid.Cid, after time.Duration) error {
	e := &ipfs.UnavailableError{CIDs: cids, After: after}
	for _, p := range n.host.Network().Peers() {
		e.Asked = append(e.Asked, p.String())
	}
	slices.Sort(e.Asked)
	switch {
	case len(e.Asked) > 0:
		e.Hint = "connect a node that holds it, or push the image again"
	case len(n.s.peers) > 0:
		e.Hint = "start one of the configured peers, or see whether they can be reached"
	default:
		e.Hint = "configure peers"
	}
	return e
}
