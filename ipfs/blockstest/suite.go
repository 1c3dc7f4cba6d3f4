package blockstest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// Fixture is one implementation under test, with the source that it gets its
// blocks from. Both end with the test.
type Fixture struct {
	// Blocks is what is tested. It must give up on a missing block within a
	// few seconds; the suite waits for a minute.
	Blocks ipfs.Blocks
	// Put gives the source blocks that Blocks can then get.
	Put func(t testing.TB, bs ...blocks.Block)
	// Plant makes the source hold data under a CID as it is, though it does
	// not match or is too large. Nil where a source cannot be made to lie.
	Plant func(t testing.TB, c cid.Cid, data []byte)
}

// Run tests that an implementation keeps the contract of [ipfs.Blocks]. Each
// test gets a fixture of its own.
func Run(t *testing.T, newFixture func(t *testing.T) Fixture) {
	t.Helper()
	for _, tt := range []struct {
		name string
		run  func(t *testing.T, f Fixture)
	}{
		{"Many", testMany},
		{"Empty", testEmpty},
		{"Duplicates", testDuplicates},
		{"KindsOfCID", testKindsOfCID},
		{"BadCID", testBadCID},
		{"LargestBlock", testLargestBlock},
		{"Missing", testMissing},
		{"CancelledBefore", testCancelledBefore},
		{"CancelledWhile", testCancelledWhile},
		{"ErrorOfFn", testErrorOfFn},
		{"Concurrent", testConcurrent},
		{"CancelledGetHarmsNoOther", testCancelledGetHarmsNoOther},
		{"Corrupt", testCorrupt},
		{"Oversized", testOversized},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, newFixture(t)) })
	}
}

// Random returns a raw block of size pseudo-random bytes that depend on seed.
func Random(t testing.TB, seed uint64, size int) blocks.Block {
	t.Helper()
	return block(t, random(seed, size), cid.NewPrefixV1(cid.Raw, multihash.SHA2_256))
}

func random(seed uint64, size int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	data := make([]byte, size)
	rand.NewChaCha8(key).Read(data) // never fails
	return data
}

func block(t testing.TB, data []byte, prefix cid.Prefix) blocks.Block {
	t.Helper()
	c, err := prefix.Sum(data)
	if err != nil {
		t.Fatal(err)
	}
	b, err := blocks.NewBlockWithCid(data, c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// testContext ends an implementation that hangs.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// get collects what Get hands over, and checks that fn is called once for each
// CID, by one goroutine at a time.
func get(ctx context.Context, f Fixture, cids ...cid.Cid) (map[cid.Cid][]byte, error) {
	got := make(map[cid.Cid][]byte)
	var running atomic.Int32
	err := f.Blocks.Get(ctx, ipfs.Want{CIDs: cids}, func(c cid.Cid, data []byte) error {
		defer running.Add(-1)
		if running.Add(1) != 1 {
			return errors.New("fn is called concurrently")
		}
		if _, twice := got[c]; twice {
			return fmt.Errorf("%s was handed over twice", c)
		}
		got[c] = bytes.Clone(data)
		return nil
	})
	return got, err
}

// wantAll gets the blocks and compares each.
func wantAll(t *testing.T, f Fixture, want ...blocks.Block) {
	t.Helper()
	var cids []cid.Cid
	for _, b := range want {
		cids = append(cids, b.Cid())
	}
	got, err := get(testContext(t), f, cids...)
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	for _, b := range want {
		data, ok := got[b.Cid()]
		if !ok {
			t.Errorf("%s was not handed over", b.Cid())
		} else if !bytes.Equal(data, b.RawData()) {
			t.Errorf("%s has other data", b.Cid())
		}
	}
	for c := range got {
		if !slices.Contains(cids, c) {
			t.Errorf("%s was handed over unasked", c)
		}
	}
}

// wantUnavailable checks that err names exactly the CIDs.
func wantUnavailable(t *testing.T, err error, cids ...cid.Cid) {
	t.Helper()
	var u *ipfs.UnavailableError
	if !errors.As(err, &u) {
		t.Fatalf("Get: %v, want an UnavailableError", err)
	}
	named := make(map[cid.Cid]bool)
	for _, c := range u.CIDs {
		named[c] = true
	}
	for _, c := range cids {
		if !named[c] {
			t.Errorf("%v does not name %s", err, c)
		}
	}
	if len(named) > len(cids) {
		t.Errorf("%v names more than the %d missing", err, len(cids))
	}
}

func testMany(t *testing.T, f Fixture) {
	var bs []blocks.Block
	for i := range 300 {
		bs = append(bs, Random(t, uint64(i), 1+i*97))
	}
	f.Put(t, bs...)
	wantAll(t, f, bs...)
	wantAll(t, f, bs[:10]...) // and again, from wherever they are now
}

func testEmpty(t *testing.T, f Fixture) {
	wantAll(t, f)
}

func testDuplicates(t *testing.T, f Fixture) {
	a, b := Random(t, 1, 1000), Random(t, 2, 1000)
	f.Put(t, a, b)
	wantAll(t, f, a, b, a, a, b)
}

func testKindsOfCID(t *testing.T, f Fixture) {
	data := random(1, 5000)
	bs := []blocks.Block{
		block(t, data, cid.NewPrefixV1(cid.Raw, multihash.SHA2_256)),
		block(t, data, cid.NewPrefixV1(cid.DagProtobuf, multihash.SHA2_256)), // the same hash
		block(t, random(2, 64), cid.NewPrefixV1(cid.DagCBOR, multihash.SHA2_256)),
		block(t, random(3, 64), cid.NewPrefixV0(multihash.SHA2_256)),
		block(t, random(4, 64), cid.NewPrefixV1(cid.Raw, multihash.SHA2_512)),
	}
	f.Put(t, bs...)
	wantAll(t, f, bs...)
	// Nobody needs to hold what follows from the CID alone.
	wantAll(t, f,
		block(t, nil, cid.NewPrefixV1(cid.Raw, multihash.SHA2_256)),
		block(t, []byte("carried"), cid.NewPrefixV1(cid.Raw, multihash.IDENTITY)),
		block(t, nil, cid.NewPrefixV1(cid.DagProtobuf, multihash.IDENTITY)),
	)
}

func testBadCID(t *testing.T, f Fixture) {
	for _, c := range []cid.Cid{
		cid.Undef,
		block(t, []byte("weak"), cid.NewPrefixV1(cid.Raw, multihash.MD5)).Cid(),
		block(t, random(1, 2000), cid.NewPrefixV1(cid.Raw, multihash.IDENTITY)).Cid(),
	} {
		if got, err := get(testContext(t), f, c); !errors.Is(err, ipfs.ErrBadCID) || len(got) > 0 {
			t.Errorf("Get of %q: %d blocks and %v, want ErrBadCID", c, len(got), err)
		}
	}
}

func testLargestBlock(t *testing.T, f Fixture) {
	b := Random(t, 1, ipfs.MaxBlockSize)
	f.Put(t, b)
	wantAll(t, f, b)
}

func testMissing(t *testing.T, f Fixture) {
	have := Random(t, 1, 1000)
	gone1, gone2 := Random(t, 2, 1000).Cid(), Random(t, 3, 1000).Cid()
	f.Put(t, have)
	_, err := get(testContext(t), f, gone1)
	wantUnavailable(t, err, gone1)
	if err != nil && !strings.Contains(err.Error(), gone1.String()) {
		t.Errorf("the text %q does not name the CID", err)
	}
	got, err := get(testContext(t), f, have.Cid(), gone1, gone2, gone1)
	if len(got) != 1 {
		t.Errorf("%d blocks were handed over, want the one that is there", len(got))
	}
	var u *ipfs.UnavailableError
	if !errors.As(err, &u) || len(u.CIDs) == 0 {
		t.Fatalf("Get: %v, want an UnavailableError that names CIDs", err)
	}
	for _, c := range u.CIDs {
		if c != gone1 && c != gone2 {
			t.Errorf("%v names %s, which is there", err, c)
		}
	}
	wantAll(t, f, have) // it goes on working
}

func testCancelledBefore(t *testing.T, f Fixture) {
	b := Random(t, 1, 1000)
	f.Put(t, b)
	ctx, cancel := context.WithCancel(testContext(t))
	cancel()
	if got, err := get(ctx, f, b.Cid()); !errors.Is(err, context.Canceled) || len(got) > 0 {
		t.Errorf("Get: %d blocks and %v, want context.Canceled", len(got), err)
	}
}

func testCancelledWhile(t *testing.T, f Fixture) {
	// From within fn: a block has come, another one never will.
	have, gone := Random(t, 1, 1000), Random(t, 2, 1000).Cid()
	f.Put(t, have)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	called := false
	err := f.Blocks.Get(ctx, ipfs.Want{CIDs: []cid.Cid{have.Cid(), gone}}, func(cid.Cid, []byte) error {
		called = true
		cancel()
		return nil
	})
	if !called { // it knew at once that the other is nowhere
		wantUnavailable(t, err, gone)
	} else if !errors.Is(err, context.Canceled) {
		t.Errorf("Get: %v, want context.Canceled", err)
	}
}

func testErrorOfFn(t *testing.T, f Fixture) {
	var bs []blocks.Block
	var cids []cid.Cid
	for i := range 50 {
		bs = append(bs, Random(t, uint64(i), 1000))
		cids = append(cids, bs[i].Cid())
	}
	f.Put(t, bs...)
	mine := errors.New("mine")
	var calls int
	err := f.Blocks.Get(testContext(t), ipfs.Want{CIDs: cids}, func(cid.Cid, []byte) error {
		calls++
		if calls == 3 {
			return mine
		}
		return nil
	})
	if err != mine || calls != 3 {
		t.Errorf("Get: %v after %d calls, want fn's own error after 3", err, calls)
	}
	wantAll(t, f, bs...)
}

func testConcurrent(t *testing.T, f Fixture) {
	var bs []blocks.Block
	for i := range 60 {
		bs = append(bs, Random(t, uint64(i), 20_000))
	}
	f.Put(t, bs...)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			var cids []cid.Cid // overlapping windows
			for i := range 30 {
				cids = append(cids, bs[(g*7+i)%len(bs)].Cid())
			}
			got, err := get(testContext(t), f, cids...)
			if err != nil || len(got) != len(cids) {
				t.Errorf("Get %d: %d of %d blocks, %v", g, len(got), len(cids), err)
			}
			for c, data := range got {
				if err := ipfs.Verify(c, data); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func testCancelledGetHarmsNoOther(t *testing.T, f Fixture) {
	var bs []blocks.Block
	var cids []cid.Cid
	for i := range 40 {
		bs = append(bs, Random(t, uint64(i), 50_000))
		cids = append(cids, bs[i].Cid())
	}
	f.Put(t, bs...)
	ctx, cancel := context.WithCancel(testContext(t))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			err := f.Blocks.Get(ctx, ipfs.Want{CIDs: cids}, func(cid.Cid, []byte) error {
				cancel()
				return nil
			})
			if !errors.Is(err, context.Canceled) && err != nil {
				t.Errorf("Get: %v, want context.Canceled or success", err)
			}
		})
	}
	wantAll(t, f, bs...)
	wg.Wait()
	cancel()
}

func testCorrupt(t *testing.T, f Fixture) {
	if f.Plant == nil {
		return // this source cannot be made to lie
	}
	good, bad := Random(t, 1, 1000), Random(t, 2, 1000)
	data := bytes.Clone(bad.RawData())
	data[500] ^= 1
	f.Put(t, good)
	f.Plant(t, bad.Cid(), data)
	refused(t, f, good, bad.Cid())
	short := Random(t, 3, 1000)
	f.Plant(t, short.Cid(), short.RawData()[:999])
	refused(t, f, good, short.Cid())
}

func testOversized(t *testing.T, f Fixture) {
	if f.Plant == nil {
		return
	}
	good, large := Random(t, 1, 1000), Random(t, 2, ipfs.MaxBlockSize+1)
	f.Put(t, good)
	f.Plant(t, large.Cid(), large.RawData())
	refused(t, f, good, large.Cid())
}

// refused checks that c is never handed over, and good is.
func refused(t *testing.T, f Fixture, good blocks.Block, c cid.Cid) {
	t.Helper()
	got, err := get(testContext(t), f, c)
	var u *ipfs.UnavailableError
	if !errors.As(err, &u) && !errors.Is(err, ipfs.ErrBadBlock) && !errors.Is(err, ipfs.ErrTooLarge) {
		t.Errorf("Get: %v, want an UnavailableError, ErrBadBlock or ErrTooLarge", err)
	}
	if len(got) > 0 {
		t.Errorf("Get handed over a bad block for %s", c)
	}
	wantAll(t, f, good)
}
