// Package chain makes one [ipfs.Blocks] of several, for instance the embedded
// node, a Kubo daemon and gateways: they are asked in order, the next one for
// what those before it could not give, or did not give in time.
package chain

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// Source is one link of a chain.
type Source struct {
	Name   string // for errors: "gateway"
	Blocks ipfs.Blocks
	// Keep, where it is set, is offered each block that another source gave, so
	// that it is here the next time. The reader has the block already, but not
	// the next one: Keep should not take long. Its context does not end with
	// the reader's.
	Keep func(ctx context.Context, b blocks.Block) error
}

// Config says who is asked when.
type Config struct {
	// Sources in the order of asking, at least one, each with a name of its
	// own.
	Sources []Source
	// Patience is how long nothing may arrive before the next source is asked
	// as well. The default is 700 ms. Blocks that nobody waits for get eight
	// times that.
	Patience time.Duration
	// Log gets what goes wrong without failing a Get. The default discards it.
	Log *slog.Logger
}

const (
	defaultPatience = 700 * time.Millisecond
	bulkPatience    = 8 // times as long
	lateHurry       = 16
)

// Chain asks sources in order. It is safe for concurrent use. Use [New].
type Chain struct {
	sources  []Source
	given    []given // by source
	patience time.Duration
	late     *lateRoots
	log      *slog.Logger
}

var _ ipfs.Blocks = (*Chain)(nil)

// New returns a chain of sources, which the caller closes after its use.
func New(cfg Config) (*Chain, error) {
	if len(cfg.Sources) == 0 {
		return nil, errors.New("chain: no source")
	}
	c := &Chain{sources: cfg.Sources, given: make([]given, len(cfg.Sources)), patience: cfg.Patience, late: newLateRoots(), log: cfg.Log}
	if c.patience <= 0 {
		c.patience = defaultPatience
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Get implements [ipfs.Blocks]. It hands each block over once, from whichever
// source gives it first, and ends those that still look when all are there. It
// takes no longer than its sources do, one after the other at worst. The
// [*ipfs.UnavailableError] names whom each source asked, and wraps the errors
// of all.
func (c *Chain) Get(ctx context.Context, w ipfs.Want, fn func(cid.Cid, []byte) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	want, err := ipfs.Request(w.CIDs, fn)
	if err != nil || len(want) == 0 {
		return err
	}
	w.CIDs = want
	err = newGet(c, w, fn).run(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// given counts what a source gave.
type given struct{ blocks, bytes atomic.Int64 }

// Given is what a source gave since the chain was made: blocks that it was the
// first to give, and their bytes. What the node has in its store counts as its
// own.
type Given struct {
	Source string `json:"source"`
	Blocks int64  `json:"blocks"`
	Bytes  int64  `json:"bytes"`
}

// Given returns what each source gave, in the order of asking.
func (c *Chain) Given() []Given {
	all := make([]Given, len(c.sources))
	for i := range all {
		all[i] = Given{c.sources[i].Name, c.given[i].blocks.Load(), c.given[i].bytes.Load()}
	}
	return all
}

// patienceFor is how long a Get waits for one source before it asks the next.
func (c *Chain) patienceFor(w ipfs.Want) time.Duration {
	p := c.patience
	if w.Bulk {
		p *= bulkPatience
	}
	if c.late.is(w.Root, time.Now()) {
		p /= lateHurry
	}
	return p
}

// keep offers a block to the sources that did not give it.
func (c *Chain) keep(ctx context.Context, from int, id cid.Cid, data []byte) {
	for i, s := range c.sources {
		if s.Keep == nil || i == from {
			continue
		}
		b, err := blocks.NewBlockWithCid(data, id)
		if err == nil {
			err = s.Keep(context.WithoutCancel(ctx), b)
		}
		if err != nil {
			c.log.Debug("a block is not kept", "cid", id.String(), "source", s.Name, "error", err)
		}
	}
}
