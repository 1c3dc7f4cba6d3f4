package chain

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"go.uber.org/goleak"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a source: it gives what it holds after a time each, and waits for
// what it does not hold, until giveUp; 0: it knows at once.
type fake struct {
	*blockstest.Memory
	each   time.Duration
	giveUp time.Duration
	asked  atomic.Int32 // blocks
	gets   atomic.Int32
	ended  atomic.Int32 // Gets
}

func newFake(each, giveUp time.Duration, bs ...blocks.Block) *fake {
	f := &fake{Memory: blockstest.NewMemory(), each: each, giveUp: giveUp}
	for _, b := range bs {
		_ = f.Put(context.Background(), b) // never fails
	}
	return f
}

func (f *fake) Get(ctx context.Context, w ipfs.Want, fn func(cid.Cid, []byte) error) error {
	f.gets.Add(1)
	f.asked.Add(int32(len(w.CIDs)))
	defer f.ended.Add(1)
	if f.each > 0 {
		inner := fn
		fn = func(c cid.Cid, data []byte) error {
			if err := sleep(ctx, f.each); err != nil {
				return err
			}
			return inner(c, data)
		}
	}
	err := f.Memory.Get(ctx, w, fn)
	var u *ipfs.UnavailableError
	if errors.As(err, &u) && f.giveUp > 0 {
		if err := sleep(ctx, f.giveUp); err != nil {
			return err
		}
		u.After = f.giveUp
	}
	return err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

const patience = time.Second

// chainOf makes a chain of sources named a, b, c …
func chainOf(t testing.TB, bs ...ipfs.Blocks) *Chain {
	t.Helper()
	var sources []Source
	for i, b := range bs {
		sources = append(sources, Source{Name: string(rune('a' + i)), Blocks: b})
	}
	c, err := New(Config{Sources: sources, Patience: patience})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// random returns n blocks and their CIDs.
func random(t testing.TB, n int) (bs []blocks.Block, cids []cid.Cid) {
	t.Helper()
	for i := range n {
		bs = append(bs, blockstest.Random(t, uint64(i), 100))
		cids = append(cids, bs[i].Cid())
	}
	return bs, cids
}

// shapes are chains over sources of which those in hold get the blocks.
var shapes = map[string]func(t *testing.T) (c *Chain, hold []*fake){
	"one": func(t *testing.T) (*Chain, []*fake) {
		f := newFake(0, 0)
		return chainOf(t, f), []*fake{f}
	},
	"the last holds all": func(t *testing.T) (*Chain, []*fake) {
		f := newFake(0, 0)
		return chainOf(t, newFake(0, 0), newFake(0, 10*time.Millisecond), f), []*fake{f}
	},
	"they share": func(t *testing.T) (*Chain, []*fake) {
		a, b, c := newFake(0, 0), newFake(time.Microsecond, time.Millisecond), newFake(0, 0)
		return chainOf(t, a, b, c), []*fake{a, b, c}
	},
	"the first is dead": func(t *testing.T) (*Chain, []*fake) {
		f := newFake(0, 0)
		c := chainOf(t, newFake(0, 300*time.Millisecond), f)
		c.patience = 10 * time.Millisecond
		return c, []*fake{f}
	},
	"chains of chains": func(t *testing.T) (*Chain, []*fake) {
		a, b := newFake(0, time.Millisecond), newFake(0, time.Millisecond)
		return chainOf(t, chainOf(t, newFake(0, 0), a), chainOf(t, chainOf(t, b), newFake(0, 0))), []*fake{a, b}
	},
}

func fixtureOf(t *testing.T, shape func(t *testing.T) (*Chain, []*fake)) blockstest.Fixture {
	c, hold := shape(t)
	n := 0
	put := func(t testing.TB, id cid.Cid, data []byte) {
		b, err := blocks.NewBlockWithCid(data, id)
		if err != nil {
			t.Fatal(err)
		}
		if err := hold[n%len(hold)].Put(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		n++
	}
	return blockstest.Fixture{
		Blocks: c,
		Put: func(t testing.TB, bs ...blocks.Block) {
			for _, b := range bs {
				put(t, b.Cid(), b.RawData())
			}
		},
		Plant: put,
	}
}
