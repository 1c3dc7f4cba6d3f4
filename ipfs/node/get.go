package node

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"golang.org/x/sync/errgroup"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/stall"
)

// errClosed is returned by a Get of a node that has been closed.
var errClosed = errors.New("node: closed")

// Get implements [ipfs.Blocks]: from the store what is there, the rest from
// peers, directly and by bitswap. Blocks from the network are kept, and served
// to others. A Get that gets no block for Config.FetchTimeout ends with an
// [*ipfs.UnavailableError].
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
	var gone *ipfs.UnavailableError // what is here is handed over all the same
	if len(away) > 0 {
		g.Go(func() error {
			err := n.fetch(gctx, part(w, away), out)
			if errors.As(err, &gone) {
				return nil
			}
			return err
		})
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
		err = n.fetch(ctx, part(w, damaged), out)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil && gone != nil:
		return gone
	}
	return err
}

// part is w for some of its blocks.
func part(w ipfs.Want, cids []cid.Cid) ipfs.Want {
	w.CIDs = cids
	return w
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
			err := n.store.View(c, func(data []byte) error { return out.give(c, data) })
			if ipld.IsNotFound(err) {
				mu.Lock()
				defer mu.Unlock()
				damaged = append(damaged, c)
				return nil
			}
			return err
		})
	}
	return damaged, g.Wait()
}

// bitswapPatience is for how long nothing arrives before bitswap is asked for
// blocks, too, that a direct peer is known to hold.
const bitswapPatience = 2 * time.Second

// gatherTime is for how long lost blocks are gathered; bitswap itself lets more
// pass between two messages.
const gatherTime = 2 * time.Millisecond

// fetch hands over blocks from the network: from those who serve them directly;
// by bitswap what none of these has, or what they do not give in time. Whichever
// way a block comes, it is noticed on the other.
func (n *Node) fetch(ctx context.Context, w ipfs.Want, out *output) error {
	if n.isolated() {
		return n.unavailable(w.CIDs, 0) // nobody can ever connect
	}
	watched, watch := stall.Start(ctx, n.s.FetchTimeout)
	defer watch.Stop()
	watch.Enter()
	stop := context.AfterFunc(n.ctx, watch.Stop)
	defer stop()
	if len(n.host.Network().Peers()) < len(n.s.peers) {
		n.peering.wake()
	}

	var mu sync.Mutex
	missing := make(map[cid.Cid]bool, len(w.CIDs))
	for _, c := range w.CIDs {
		missing[c] = true
	}
	rest := func() []cid.Cid {
		mu.Lock()
		defer mu.Unlock()
		return slices.DeleteFunc(slices.Clone(w.CIDs), func(c cid.Cid) bool { return !missing[c] })
	}
	progress := make(chan struct{}, 1)
	give := func(c cid.Cid, data []byte) error {
		mu.Lock()
		defer mu.Unlock()
		delete(missing, c)
		select {
		case progress <- struct{}{}:
		default:
		}
		if w.Root.Defined() {
			n.announce(w.Root) // the first part is enough
		}
		n.blocksFetched.Add(1)
		n.bytesFetched.Add(int64(len(data)))
		watch.Leave() // time that the reader takes is no stall
		defer watch.Enter()
		return out.give(c, data)
	}
	lost := make(chan cid.Cid, len(w.CIDs))

	bctx, cancel := context.WithCancel(watched)
	var others sync.WaitGroup
	others.Go(func() { n.elsewhere(bctx, w.Root, lost, progress, rest) })
	err := n.direct.Fetch(watched, w, give, func(c cid.Cid) { lost <- c })
	cancel()
	others.Wait()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case n.ctx.Err() != nil:
		return errClosed
	case errors.Is(context.Cause(watched), stall.ErrStalled):
		return n.unavailable(rest(), n.s.FetchTimeout)
	}
	return err
}

// elsewhere asks bitswap for blocks that are lost, and for all the rest when
// there is no progress, until ctx ends. Holders of root, if it is known, are
// looked for then, too.
func (n *Node) elsewhere(ctx context.Context, root cid.Cid, lost <-chan cid.Cid, progress <-chan struct{}, rest func() []cid.Cid) {
	var rounds sync.WaitGroup
	defer rounds.Wait()
	asked := make(map[cid.Cid]bool)
	ask := func(cids []cid.Cid) {
		cids = slices.DeleteFunc(cids, func(c cid.Cid) bool { return asked[c] })
		for _, c := range cids {
			asked[c] = true
		}
		if len(cids) > 0 {
			rounds.Go(func() { n.swap(ctx, cids) })
		}
		if root.Defined() {
			rounds.Go(func() { n.find(ctx, root) })
		}
	}
	patience := time.NewTimer(bitswapPatience)
	defer patience.Stop()
	for {
		select {
		case c := <-lost:
			// What comes together is asked for together.
			sleep(ctx, gatherTime)
			ask(append(drain(lost), c))
		case <-progress:
			patience.Reset(bitswapPatience)
		case <-patience.C:
			ask(rest())
			patience.Reset(bitswapPatience)
		case <-ctx.Done():
			return
		}
	}
}

func drain(c <-chan cid.Cid) (cids []cid.Cid) {
	for {
		select {
		case x := <-c:
			cids = append(cids, x)
		default:
			return cids
		}
	}
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
