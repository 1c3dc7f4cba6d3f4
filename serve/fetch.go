package serve

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/docker/go-units"
	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store"
)

// How a pin fetches.
const (
	partsAtOnce  = 4   // DAGs, such as layers
	leavesAtOnce = 256 // blocks of each
)

// run fetches the DAGs of parts, as far as they are not here. It is bounded by
// the store's own time without progress, and ends when there is more than the
// node may hold.
func (f *fetch) run(ctx context.Context, h *handler, parts []cid.Cid) error {
	f.blocks.Store(0)
	f.bytes.Store(0)
	limit := h.Repo.Stat().Limit
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(partsAtOnce)
	for _, part := range parts {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			d := dagFetch{fetch: f, store: h.Store, want: ipfs.Want{Root: part, Bulk: true}, limit: limit}
			return d.run(ctx)
		})
	}
	return g.Wait()
}

// dagFetch fetches one DAG.
type dagFetch struct {
	*fetch
	store  Store
	want   ipfs.Want
	limit  int64
	leaves []cid.Cid
}

func (d *dagFetch) run(ctx context.Context) error {
	err := ipfs.Walk(ctx, d.store, d.want.Root, d.want, func(c cid.Cid, data []byte) error {
		if data != nil {
			return d.count(c, data)
		}
		ok, err := d.store.Has(ctx, c)
		if err != nil {
			return err
		}
		if ok {
			d.blocks.Add(1)
			return nil
		}
		if d.leaves = append(d.leaves, c); len(d.leaves) < leavesAtOnce {
			return nil
		}
		return d.flush(ctx)
	})
	if err != nil {
		return err
	}
	return d.flush(ctx)
}

func (d *dagFetch) flush(ctx context.Context) error {
	d.want.CIDs = d.leaves
	err := d.store.Get(ctx, d.want, d.count)
	d.leaves = d.leaves[:0]
	return err
}

func (d *dagFetch) count(_ cid.Cid, data []byte) error {
	d.blocks.Add(1)
	if n := d.bytes.Add(int64(len(data))); n > d.limit {
		return fmt.Errorf("%w: it has more than the %s that this node may hold now (ipfs.budget, ipfs.keep_free_percent)",
			store.ErrFull, units.BytesSize(float64(d.limit)))
	}
	return nil
}

const (
	beatEvery    = time.Second
	writeTimeout = 30 * time.Second // for who reads an answer to take some of it
)

// lines answers with a line of JSON for each value that work emits. While
// nothing comes it sends, every second, what beat returns, or an empty line, so
// that the client knows that there is somebody.
func (h *handler) lines(w http.ResponseWriter, r *http.Request, beat func() any, work func(ctx context.Context, emit func(any) error) error) error {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	values, done := make(chan any, 64), make(chan error, 1)
	go func() {
		defer close(values)
		done <- work(ctx, func(v any) error {
			select {
			case values <- v:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Chunked-Output", "1")
	conn := http.NewResponseController(w)
	defer func() { _ = conn.SetWriteDeadline(time.Time{}) }() // the connection may serve others
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for open := true; open; {
		var v any
		flush := false
		select {
		case v, open = <-values:
			if !open {
				continue
			}
			flush = len(values) == 0
		case <-tick.C:
			v, flush = beat(), true
		}
		if err := conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			h.Log.Debug("an RPC answer has no deadline", "err", err)
		}
		if v == nil {
			if _, err := w.Write([]byte("\n")); err != nil {
				cancel()
			}
		} else {
			h.encode(w, v)
		}
		if flush && conn.Flush() != nil {
			cancel()
		}
	}
	return <-done
}
