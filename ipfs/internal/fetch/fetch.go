// Package fetch makes [ipfs.Blocks] of a source that is asked for one block at
// a time, such as an HTTP server: many requests at once, each block handed over
// as it comes, and an end when nothing comes any more.
package fetch

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/stall"
)

// ErrDown is what an error of [Source.Block] is ([errors.Is]) if the source will
// give no other block either. It ends the Get.
var ErrDown = errors.New("source is down")

// Down makes err an [ErrDown] without a change to its text.
func Down(err error) error { return down{err} }

type down struct{ error }

func (d down) Unwrap() error      { return d.error }
func (down) Is(target error) bool { return target == ErrDown }

// Source is what a Get asks. It is made for each Get.
type Source struct {
	// Block gets one block and verifies it. An [*ipfs.UnavailableError] says
	// that this block is not to be had; the others are asked for all the same.
	// Any other error ends the Get.
	Block func(ctx context.Context, c cid.Cid) ([]byte, error)
	// Parallel is how many blocks are asked for at once, and so how many are
	// in memory. It is at least 1.
	Parallel int
	// Timeout is how long nothing may arrive before the Get ends.
	Timeout time.Duration
	// Unavailable makes the error for blocks that did not come: after is the
	// time in which nothing arrived, or 0 with the error that ended the Get.
	Unavailable func(cids []cid.Cid, after time.Duration, err error) *ipfs.UnavailableError
}

// Get does what [ipfs.Blocks] says. Where blocks are unavailable, all others
// have been handed over before it returns, and the error names those that are
// missing.
func (s Source) Get(ctx context.Context, w ipfs.Want, fn func(cid.Cid, []byte) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	want, err := ipfs.Request(w.CIDs, fn)
	if err != nil || len(want) == 0 {
		return err
	}
	watched, watch := stall.Start(ctx, s.Timeout)
	defer watch.Stop()
	watch.Enter()
	g, gctx := errgroup.WithContext(watched)
	g.SetLimit(s.Parallel)
	r := &results{ctx: gctx, watch: watch, fn: fn, had: make(map[cid.Cid]bool, len(want))}
	for _, c := range want {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			data, err := s.Block(gctx, c)
			return r.add(c, data, err)
		})
	}
	err = g.Wait()
	rest := func() []cid.Cid { return slices.DeleteFunc(want, func(c cid.Cid) bool { return r.had[c] }) }
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case r.fnErr != nil:
		return r.fnErr
	case errors.Is(context.Cause(watched), stall.ErrStalled):
		return merge(s.Unavailable(rest(), s.Timeout, nil), r.missing)
	case errors.Is(err, ErrDown):
		return s.Unavailable(rest(), 0, err)
	case err != nil:
		return err
	case len(r.missing) > 0:
		return merge(nil, r.missing)
	}
	return nil
}

// results hands blocks over, one at a time, and collects what did not come.
type results struct {
	ctx   context.Context
	watch *stall.Watch
	fn    func(cid.Cid, []byte) error

	mu      sync.Mutex
	fnErr   error // no call of fn after it
	had     map[cid.Cid]bool
	missing []*ipfs.UnavailableError
}

// add takes the answer for one block. Its error ends the Get.
func (r *results) add(c cid.Cid, data []byte, err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fnErr != nil {
		return r.fnErr
	}
	var u *ipfs.UnavailableError
	if errors.As(err, &u) && !errors.Is(err, ErrDown) && r.ctx.Err() == nil {
		r.missing = append(r.missing, u)
		return nil // an answer, but no progress: the source may take its time for each of many
	}
	if err != nil {
		return err
	}
	if err := r.ctx.Err(); err != nil {
		return err
	}
	r.had[c] = true
	r.watch.Leave()
	defer r.watch.Enter()
	r.fnErr = r.fn(c, data)
	return r.fnErr
}

// maxAsked is how many that were asked an error names.
const maxAsked = 32

// merge makes one error of several: into first, which names all CIDs already,
// or into a new one.
func merge(first *ipfs.UnavailableError, more []*ipfs.UnavailableError) *ipfs.UnavailableError {
	out := first
	if out == nil {
		out = &ipfs.UnavailableError{Hint: more[0].Hint, Err: more[0].Err}
		for _, u := range more {
			out.CIDs = append(out.CIDs, u.CIDs...)
		}
	}
	for _, u := range more {
		out.After = max(out.After, u.After)
		if out.Err == nil {
			out.Err = u.Err
		}
		if first != nil {
			continue // it says itself who was asked
		}
		for _, a := range u.Asked {
			if len(out.Asked) < maxAsked && !slices.Contains(out.Asked, a) {
				out.Asked = append(out.Asked, a)
			}
		}
	}
	return out
}
