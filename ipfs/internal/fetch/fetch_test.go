package fetch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"go.uber.org/goleak"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const timeout = 10 * time.Second

// source answers from a map; what is not in it is unavailable.
func source(held map[cid.Cid][]byte) Source {
	return Source{
		Block: func(_ context.Context, c cid.Cid) ([]byte, error) {
			data, ok := held[c]
			if !ok {
				return nil, &ipfs.UnavailableError{CIDs: []cid.Cid{c}, Asked: []string{"map"}, Hint: "put it there"}
			}
			return data, ipfs.Verify(c, data)
		},
		Parallel: 4,
		Timeout:  timeout,
		Unavailable: func(cids []cid.Cid, after time.Duration, err error) *ipfs.UnavailableError {
			return &ipfs.UnavailableError{CIDs: cids, After: after, Asked: []string{"map"}, Err: err}
		},
	}
}

// blocksOf adapts a Source to the suite.
type blocksOf struct{ Source }

func TestSuite(t *testing.T) {
	blockstest.Run(t, func(*testing.T) blockstest.Fixture {
		held := map[cid.Cid][]byte{}
		return blockstest.Fixture{
			Blocks: blocksOf{source(held)},
			Put: func(_ testing.TB, bs ...blocks.Block) {
				for _, b := range bs {
					held[b.Cid()] = b.RawData()
				}
			},
			Plant: func(_ testing.TB, c cid.Cid, data []byte) { held[c] = data },
		}
	})
}

// All that can be had is handed over, and the error names all that cannot.
func TestMissingNamesAll(t *testing.T) {
	held := map[cid.Cid][]byte{}
	var want, gone []cid.Cid
	for i := range 40 {
		b := blockstest.Random(t, uint64(i), 100)
		want = append(want, b.Cid())
		if i%3 == 0 {
			gone = append(gone, b.Cid())
		} else {
			held[b.Cid()] = b.RawData()
		}
	}
	n := 0
	err := source(held).Get(t.Context(), ipfs.Want{CIDs: want}, func(cid.Cid, []byte) error { n++; return nil })
	var u *ipfs.UnavailableError
	if !errors.As(err, &u) || n != len(held) {
		t.Fatalf("%d of %d blocks, %v", n, len(held), err)
	}
	if !sameCIDs(u.CIDs, gone) || !slices.Equal(u.Asked, []string{"map"}) || u.Hint != "put it there" {
		t.Errorf("%v, want the %d that are gone", err, len(gone))
	}
}

func sameCIDs(a, b []cid.Cid) bool {
	key := func(c, d cid.Cid) int { return slices.Compare(c.Bytes(), d.Bytes()) }
	return slices.Equal(slices.SortedFunc(slices.Values(a), key), slices.SortedFunc(slices.Values(b), key))
}

var errNoRoute = errors.New("no route")

// A source that is down is not asked for each of the blocks.
func TestDownEndsTheGet(t *testing.T) {
	var want []cid.Cid
	for i := range 100 {
		want = append(want, blockstest.Random(t, uint64(i), 10).Cid())
	}
	s := source(nil)
	asked := 0
	s.Parallel = 1
	s.Block = func(context.Context, cid.Cid) ([]byte, error) {
		asked++
		return nil, fmt.Errorf("map: %w", Down(errNoRoute))
	}
	err := s.Get(t.Context(), ipfs.Want{CIDs: want}, nil)
	var u *ipfs.UnavailableError
	if !errors.As(err, &u) || !sameCIDs(u.CIDs, want) || !errors.Is(err, errNoRoute) || !strings.HasSuffix(err.Error(), "map: no route") || asked > 2 {
		t.Errorf("asked %d times: %v", asked, err)
	}
}

// Some blocks come, one is answered for, the others never are: the Get ends
// after its timeout and names both kinds.
func TestStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		have, gone, hung := blockstest.Random(t, 1, 10), blockstest.Random(t, 2, 10).Cid(), blockstest.Random(t, 3, 10).Cid()
		s := source(map[cid.Cid][]byte{have.Cid(): have.RawData()})
		answer := s.Block
		s.Block = func(ctx context.Context, c cid.Cid) ([]byte, error) {
			if c == hung {
				<-ctx.Done()
				return nil, context.Cause(ctx)
			}
			return answer(ctx, c)
		}
		start := time.Now()
		err := s.Get(t.Context(), ipfs.Want{CIDs: []cid.Cid{hung, gone, have.Cid()}}, func(cid.Cid, []byte) error { return nil })
		var u *ipfs.UnavailableError
		if !errors.As(err, &u) || !sameCIDs(u.CIDs, []cid.Cid{gone, hung}) || u.After != timeout {
			t.Errorf("%v", err)
		}
		if took := time.Since(start); took != timeout {
			t.Errorf("took %v", took)
		}
	})
}
