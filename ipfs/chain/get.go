package chain

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// get is one Get. All of it happens on the caller's goroutine but what the
// sources do.
type get struct {
	*Chain
	want    ipfs.Want
	fn      func(cid.Cid, []byte) error
	missing map[cid.Cid]bool
	started int     // sources, from the first on
	active  int     // of them, those that have not ended
	errs    []error // by source

	sources  sync.WaitGroup
	arrived  chan arrival
	ended    chan end
	patience *time.Timer // until the next source is started
}

// arrival is a block from a source, which lends it until done is closed.
type arrival struct {
	from int
	cid  cid.Cid
	data []byte
	done chan struct{}
}

// end is that of a source's Get.
type end struct {
	from int
	err  error
}

func newGet(c *Chain, w ipfs.Want, fn func(cid.Cid, []byte) error) *get {
	g := &get{
		Chain: c, want: w, fn: fn, missing: make(map[cid.Cid]bool, len(w.CIDs)),
		errs:    make([]error, len(c.sources)),
		arrived: make(chan arrival), ended: make(chan end, len(c.sources)),
		patience: time.NewTimer(time.Hour),
	}
	for _, id := range w.CIDs {
		g.missing[id] = true
	}
	return g
}

// run returns when every source that was started has ended too.
func (g *get) run(ctx context.Context) error {
	defer g.patience.Stop()
	defer g.sources.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g.start(ctx)
	for {
		select {
		case a := <-g.arrived:
			err := g.take(ctx, a)
			close(a.done)
			if err != nil || len(g.missing) == 0 {
				return err
			}
		case e := <-g.ended:
			g.active--
			g.errs[e.from] = e.err
			switch {
			case g.active > 0:
			case g.started < len(g.Chain.sources):
				g.start(ctx)
			default:
				return g.unavailable()
			}
		case <-g.patience.C:
			g.start(ctx)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take hands a block over.
func (g *get) take(ctx context.Context, a arrival) error {
	if !g.missing[a.cid] {
		return nil // another source gave it before
	}
	delete(g.missing, a.cid)
	g.given[a.from].blocks.Add(1)
	g.given[a.from].bytes.Add(int64(len(a.data)))
	if err := g.fn(a.cid, a.data); err != nil {
		return err
	}
	g.keep(ctx, a.from, a.cid, a.data)
	if a.from > 0 && g.active > 1 {
		g.late.add(g.want.Root, time.Now())
	}
	g.rearm()
	return nil
}

// start asks the next source for what is missing.
func (g *get) start(ctx context.Context) {
	i := g.started
	g.started++
	g.active++
	w := g.want
	w.CIDs = g.rest()
	g.sources.Go(func() {
		err := g.Chain.sources[i].Blocks.Get(ctx, w, func(c cid.Cid, data []byte) error {
			done := make(chan struct{})
			select {
			case g.arrived <- arrival{i, c, data, done}:
				<-done
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		g.ended <- end{i, err}
	})
	g.rearm()
}

// rearm gives whoever was asked their time again, from now.
func (g *get) rearm() {
	if g.started < len(g.Chain.sources) {
		g.patience.Reset(g.patienceFor(g.want))
	} else {
		g.patience.Stop()
	}
}

// rest is what is missing, in the order of the want.
func (g *get) rest() []cid.Cid {
	return slices.DeleteFunc(slices.Clone(g.want.CIDs), func(c cid.Cid) bool { return !g.missing[c] })
}
