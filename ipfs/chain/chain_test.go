package chain

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
)

func TestSuite(t *testing.T) {
	for name, shape := range shapes {
		t.Run(name, func(t *testing.T) {
			blockstest.Run(t, func(t *testing.T) blockstest.Fixture { return fixtureOf(t, shape) })
		})
	}
}

func TestFiles(t *testing.T) {
	blockstest.RunFiles(t, func(t *testing.T) blockstest.Fixture { return fixtureOf(t, shapes["they share"]) })
}

// getOnce gets blocks and checks that each comes once.
func getOnce(t *testing.T, c *Chain, w ipfs.Want) (map[cid.Cid]bool, error) {
	t.Helper()
	had := make(map[cid.Cid]bool)
	err := c.Get(t.Context(), w, func(id cid.Cid, _ []byte) error {
		if had[id] {
			t.Errorf("%s came twice", id)
		}
		had[id] = true
		return nil
	})
	return had, err
}

// Who is asked for how much, when, and how long it takes.
func TestOrder(t *testing.T) {
	bs, cids := random(t, 20)
	root := blockstest.Random(t, 1000, 10).Cid()
	const dead = 30 * time.Second // until it says so
	for _, tt := range []struct {
		name          string
		first, second *fake
		bulk          bool
		asked         int // blocks the second is asked for
		took          time.Duration
	}{
		{"the first has all", newFake(0, 0, bs...), newFake(0, 0, bs...), false, 0, 0},
		{"the first is slow, not dead", newFake(patience/2, 0, bs...), newFake(0, 0, bs...), false, 0, 20 * patience / 2},
		{"the first knows what it lacks", newFake(0, 0, bs[:15]...), newFake(0, 0, bs...), false, 5, 0},
		{"the first waits for what it lacks", newFake(0, dead, bs[:15]...), newFake(0, 0, bs...), false, 5, patience},
		{"the first is dead", newFake(0, dead), newFake(0, 0, bs...), false, 20, patience},
		{"the first is dead and nobody waits", newFake(0, dead), newFake(0, 0, bs...), true, 20, bulkPatience * patience},
		{"the first is faster after all", newFake(patience+patience/2, 0, bs[0]), newFake(5*patience, 0, bs[0]), false, 1, patience + patience/2},
		{"both take their time, and share", newFake(2*patience, dead, bs[:10]...), newFake(0, dead, bs[10:]...), false, 20, 20 * patience},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				want := cids
				if tt.first.Len() == 1 {
					want = cids[:1]
				}
				start := time.Now()
				c := chainOf(t, tt.first, tt.second)
				had, err := getOnce(t, c, ipfs.Want{CIDs: want, Bulk: tt.bulk, Root: root})
				if err != nil || len(had) != len(want) {
					t.Fatalf("%d of %d blocks, %v", len(had), len(want), err)
				}
				given := c.Given()
				if n := given[0].Blocks + given[1].Blocks; n != int64(len(want)) || given[0].Bytes+given[1].Bytes < n {
					t.Errorf("the sources gave %+v, of %d blocks", given, len(want))
				}
				if tt.asked == 0 && given[1].Blocks != 0 {
					t.Errorf("the second was not asked, and gave %+v", given[1])
				}
				if took := time.Since(start); took != tt.took || int(tt.second.asked.Load()) != tt.asked {
					t.Errorf("took %v, the second was asked for %d; want %v, %d", took, tt.second.asked.Load(), tt.took, tt.asked)
				}
				if tt.first.gets.Load() != tt.first.ended.Load() || tt.second.gets.Load() != tt.second.ended.Load() {
					t.Error("a source works on after Get returned")
				}
			})
		})
	}
}

// A dead first source costs its patience once in a while, not for each read.
func TestLateIsRemembered(t *testing.T) {
	bs, cids := random(t, 100)
	root := blockstest.Random(t, 1000, 10).Cid()
	synctest.Test(t, func(t *testing.T) {
		c := chainOf(t, newFake(0, time.Hour), newFake(0, 0, bs...))
		read := func(root cid.Cid, id cid.Cid) time.Duration {
			start := time.Now()
			if _, err := getOnce(t, c, ipfs.Want{CIDs: []cid.Cid{id}, Root: root}); err != nil {
				t.Fatal(err)
			}
			return time.Since(start)
		}
		if took := read(root, cids[0]); took != patience {
			t.Errorf("the first read took %v", took)
		}
		for _, id := range cids[1:] {
			if took := read(root, id); took != patience/lateHurry {
				t.Fatalf("a later read took %v", took)
			}
		}
		if took := read(cids[0], cids[1]); took != patience {
			t.Errorf("a read of another file took %v", took)
		}
		if took := read(cid.Undef, cids[1]) + read(cid.Undef, cids[1]); took != 2*patience {
			t.Errorf("two reads of no known file took %v", took)
		}
		time.Sleep(lateFor)
		if took := read(root, cids[2]); took != patience {
			t.Errorf("a read long after took %v", took)
		}
	})
	l, now := newLateRoots(), time.Now()
	for i := range 3 * maxLates {
		l.add(blockstest.Random(t, uint64(i), 10).Cid(), now)
	}
	if len(l.since) != maxLates {
		t.Errorf("%d files are remembered", len(l.since))
	}
	l.add(root, now.Add(lateFor))
	if !l.is(root, now.Add(lateFor)) || len(l.since) != 1 {
		t.Errorf("what is over is not forgotten: %d", len(l.since))
	}
}

// A reader that is slow itself has no reason to be impatient.
func TestSlowReader(t *testing.T) {
	bs, cids := random(t, 5)
	synctest.Test(t, func(t *testing.T) {
		second := newFake(0, 0, bs...)
		err := chainOf(t, newFake(0, 0, bs...), second).Get(t.Context(), ipfs.Want{CIDs: cids}, func(cid.Cid, []byte) error {
			time.Sleep(10 * patience)
			return nil
		})
		if err != nil || second.gets.Load() != 0 {
			t.Errorf("%v; the second was asked %d times", err, second.gets.Load())
		}
	})
}

// Nobody has it: the error names all who were asked, and why each could not.
func TestUnavailable(t *testing.T) {
	bs, cids := random(t, 3)
	liar := blockstest.NewMemory()
	lie, err := blocks.NewBlockWithCid([]byte("lie"), cids[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := liar.Put(t.Context(), lie); err != nil {
		t.Fatal(err)
	}
	nobody := blocksFunc(func(_ context.Context, w ipfs.Want, _ func(cid.Cid, []byte) error) error {
		return &ipfs.UnavailableError{CIDs: w.CIDs, Hint: "configure peers"}
	})
	synctest.Test(t, func(t *testing.T) {
		c := chainOf(t, nobody, newFake(0, 5*time.Second, bs[0]), chainOf(t, liar, newFake(0, 0)))
		had, err := getOnce(t, c, ipfs.Want{CIDs: cids})
		var u *ipfs.UnavailableError
		if !errors.As(err, &u) || !slices.Equal(u.CIDs, cids[1:]) || len(had) != 1 {
			t.Fatalf("%d blocks, %v", len(had), err)
		}
		want := []string{"a: nobody", "b: memory", "c: a: nobody", "c: b: memory"}
		if !slices.Equal(u.Asked, want) || u.After != 5*time.Second || u.Hint != "configure peers" || !errors.Is(err, ipfs.ErrBadBlock) {
			t.Errorf("asked %q after %v, hint %q: %v", u.Asked, u.After, u.Hint, err)
		}
		for _, part := range []string{"a: no peer is connected", "b: nothing arrived for 5s", "does not match its CID", cids[1].String()} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%v\ndoes not say %q", err, part)
			}
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("more than a line: %v", err)
		}
	})
}

// blocksFunc is a source that is a function.
type blocksFunc func(ctx context.Context, w ipfs.Want, fn func(cid.Cid, []byte) error) error

func (f blocksFunc) Get(ctx context.Context, w ipfs.Want, fn func(cid.Cid, []byte) error) error {
	return f(ctx, w, fn)
}

// Sources that break their contract do no harm: blocks that nobody asked for, a
// block twice, success without all blocks.
func TestBadSource(t *testing.T) {
	bs, cids := random(t, 3)
	bad := blocksFunc(func(_ context.Context, _ ipfs.Want, fn func(cid.Cid, []byte) error) error {
		for _, i := range []int{0, 0, 2} {
			if err := fn(cids[i], bs[i].RawData()); err != nil {
				return err
			}
		}
		return nil
	})
	had, err := getOnce(t, chainOf(t, bad), ipfs.Want{CIDs: cids[:2]})
	var u *ipfs.UnavailableError
	if !errors.As(err, &u) || !slices.Equal(u.CIDs, cids[1:2]) || len(had) != 1 || !errors.Is(err, errIncomplete) {
		t.Errorf("%v, %v", had, err)
	}
	had, err = getOnce(t, chainOf(t, bad, newFake(0, 0, bs...)), ipfs.Want{CIDs: cids[:2]})
	if err != nil || len(had) != 2 {
		t.Errorf("with another source: %v, %v", had, err)
	}
}

// A block that one source gave is offered to those that keep blocks, but for
// itself; the reader does not depend on it.
func TestKeep(t *testing.T) {
	bs, cids := random(t, 10)
	synctest.Test(t, func(t *testing.T) {
		first := newFake(0, time.Hour, bs[:4]...)
		var offered []cid.Cid
		c, err := New(Config{Patience: patience, Sources: []Source{
			{Name: "node", Blocks: first, Keep: func(ctx context.Context, b blocks.Block) error {
				if ctx.Err() != nil {
					t.Error("the reader's end ends the keeping")
				}
				offered = append(offered, b.Cid())
				if len(offered) == 3 {
					return errors.New("disk full")
				}
				return first.Put(ctx, b)
			}},
			{Name: "gateway", Blocks: newFake(0, 0, bs...)},
		}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		err = c.Get(ctx, ipfs.Want{CIDs: cids}, func(cid.Cid, []byte) error {
			if n++; n == len(cids) {
				cancel()
			}
			return nil
		})
		if n != len(cids) || err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%d blocks, %v", n, err)
		}
		if !slices.Equal(offered, cids[4:]) || first.Len() != 9 {
			t.Errorf("%d blocks were offered, %d are kept", len(offered), first.Len())
		}
	})
}

// Many Gets at once over sources in all conditions: every block comes once, and
// nothing is left behind.
func TestManyAtOnce(t *testing.T) {
	bs, cids := random(t, 60)
	synctest.Test(t, func(t *testing.T) {
		a := newFake(time.Millisecond, 10*time.Millisecond, bs[:40]...)
		b := newFake(2*time.Millisecond, time.Hour, bs[20:50]...)
		c := chainOf(t, a, chainOf(t, b, newFake(0, 0)), newFake(3*time.Millisecond, 0, bs[30:]...))
		var wg sync.WaitGroup
		for g := range 50 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(uint64(g), 1))
				var want []cid.Cid
				for range 30 {
					want = append(want, cids[rnd.IntN(len(cids))])
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				stop := -1
				if g%5 == 0 {
					stop = rnd.IntN(10)
				}
				had := map[cid.Cid]bool{}
				err := c.Get(ctx, ipfs.Want{CIDs: want, Bulk: g%2 == 0}, func(id cid.Cid, _ []byte) error {
					if had[id] {
						return fmt.Errorf("%s came twice", id)
					}
					had[id] = true
					if len(had) == stop {
						cancel()
					}
					return nil
				})
				if stop > 0 && !errors.Is(err, context.Canceled) || stop <= 0 && err != nil {
					t.Errorf("Get %d: %v", g, err)
				}
			})
		}
		wg.Wait()
		if a.gets.Load() != a.ended.Load() || b.gets.Load() != b.ended.Load() {
			t.Error("a source works on")
		}
	})
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("a chain without a source")
	}
}
