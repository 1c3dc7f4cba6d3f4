package store

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"go.uber.org/goleak"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store/pack"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store/pins"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is set by hand.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// fixture is a store whose clock stands still.
type fixture struct {
	*Store
	*clock
	dir string
	log bytes.Buffer

	mu      sync.Mutex
	removed []cid.Cid // as OnRemove was told
}

func open(t testing.TB, dir string, budget int64) *fixture {
	t.Helper()
	f := &fixture{clock: &clock{t: time.Unix(1_700_000_000, 0)}, dir: dir}
	s, err := Open(dir, Options{Budget: budget, Now: f.now, OnRemove: func(cids []cid.Cid) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.removed = append(f.removed, cids...)
	}}, slog.New(slog.NewTextHandler(&f.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	f.Store = s
	t.Cleanup(s.Close)
	return f
}

// fetched stores blocks as the node stores those that it fetched.
func (f *fixture) fetched(bs ...blocks.Block) {
	for _, b := range bs {
		f.Keep(b)
	}
}

func (f *fixture) has(t testing.TB, b blocks.Block) bool {
	t.Helper()
	ok, err := f.Has(t.Context(), b.Cid())
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

// onDisk adds up the blocks that are found on disk.
func (f *fixture) onDisk(t testing.TB) (st Stat) {
	t.Helper()
	err := f.packs.All(t.Context(), func(e pack.Entry) error {
		st.Bytes += e.Size
		st.Blocks++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// checkCount holds the count against the disk.
func (f *fixture) checkCount(t testing.TB) {
	t.Helper()
	got, want := f.Stat(), f.onDisk(t)
	if got.Bytes != want.Bytes || got.Blocks != want.Blocks {
		t.Errorf("counted %d bytes in %d blocks, there are %d in %d", got.Bytes, got.Blocks, want.Bytes, want.Blocks)
	}
}

func some(t testing.TB, seed uint64, n, size int) []blocks.Block {
	t.Helper()
	bs := make([]blocks.Block, n)
	for i := range bs {
		bs[i] = blockstest.Random(t, seed+uint64(i), size)
	}
	return bs
}

// file imports a file and returns its root and its blocks.
func file(t testing.TB, seed uint64, size int) (root cid.Cid, bs []blocks.Block) {
	t.Helper()
	r := bytes.NewReader(blockstest.Random(t, seed, size).RawData())
	root, _, err := importer.File(t.Context(), r, func(_ context.Context, b blocks.Block) error {
		bs = append(bs, b)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return root, bs
}

// Whatever comes and goes, the count is that of the disk, also of a store that
// is opened again.
func TestCount(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir, 0)
	bs := some(t, 1, 20, 1000)
	f.fetched(bs[:10]...)
	f.fetched(bs[:10]...)
	if err := f.PutMany(t.Context(), bs[5:]); err != nil {
		t.Fatal(err)
	}
	f.checkCount(t)
	if err := errors.Join(f.DeleteBlock(t.Context(), bs[0].Cid()), f.DeleteBlock(t.Context(), bs[0].Cid())); err != nil {
		t.Fatal(err)
	}
	// Damaged ones: one is removed when it is read, one is replaced.
	for _, b := range bs[1:3] {
		blockstest.Damage(t, f, b.Cid())
	}
	if _, err := f.Get(t.Context(), bs[1].Cid()); !ipld.IsNotFound(err) {
		t.Errorf("damaged: %v", err)
	}
	if !slices.Contains(f.removed, bs[1].Cid()) {
		t.Error("nobody was told that a damaged block is gone")
	}
	f.fetched(bs[2])
	f.checkCount(t)
	if st := f.Stat(); st.Blocks != 18 || st.Limit != math.MaxInt64 {
		t.Errorf("%+v, want 18 blocks and no limit", st)
	}
	f.Close()
	again := open(t, dir, 0)
	again.checkCount(t)
	if st := again.Stat(); st.Blocks != 18 {
		t.Errorf("%+v after opening it again, want 18 blocks", st)
	}
}

// Those that were not used for longest go first; reading is use.
func TestOldestGoFirst(t *testing.T) {
	f := open(t, t.TempDir(), 0)
	bs := some(t, 1, 10, 1000)
	for _, b := range bs {
		f.fetched(b)
		f.pass(2 * time.Minute)
	}
	for _, i := range []int{0, 3} {
		if _, err := f.Get(t.Context(), bs[i].Cid()); err != nil {
			t.Fatal(err)
		}
	}
	f.pass(2 * time.Minute)
	f.fetched(bs[5]) // it is here already: that is use too
	var told []cid.Cid
	freed, err := f.Collect(t.Context(), 6000, func(c cid.Cid, size int64) {
		if size != 1000 {
			t.Errorf("%s: %d bytes", c, size)
		}
		told = append(told, c)
	})
	if err != nil || freed != (Freed{Bytes: 4000, Blocks: 4}) {
		t.Errorf("freed %+v, %v; want four blocks", freed, err)
	}
	for i, b := range bs {
		gone := slices.Contains([]int{1, 2, 4, 6}, i)
		if f.has(t, b) == gone {
			t.Errorf("block %d: gone is %v, want %v", i, !gone, gone)
		}
		if slices.Contains(told, b.Cid()) != gone || slices.Contains(f.removed, b.Cid()) != gone {
			t.Errorf("block %d: told %v and %v, want %v", i, told, f.removed, gone)
		}
	}
	f.checkCount(t)
}

// Many of one second: no more of them go than have to.
func TestOfOneSecond(t *testing.T) {
	f := open(t, t.TempDir(), 0)
	f.fetched(some(t, 1, 100, 1000)...)
	freed, err := f.Collect(t.Context(), 70_500, nil)
	if err != nil || freed.Blocks != 30 {
		t.Errorf("freed %+v, %v; want 30 blocks", freed, err)
	}
}

// The budget is never gone over, however many bring blocks; what is read meanwhile
// stays readable or is not there.
func TestBudgetHolds(t *testing.T) {
	const budget = 200_000
	f := open(t, t.TempDir(), budget)
	stop := make(chan struct{})
	var watch, work sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if st := f.Stat(); st.Bytes > budget {
				t.Errorf("%d bytes are held, the budget is %d", st.Bytes, budget)
				return
			}
		}
	})
	bs := some(t, 1, 2000, 1000)
	for w := range 4 {
		work.Go(func() {
			for i := w; i < len(bs); i += 4 {
				f.Keep(bs[i])
				b, err := f.Get(t.Context(), bs[i/2].Cid())
				if err != nil && !ipld.IsNotFound(err) {
					t.Error(err)
				}
				if err == nil && !bytes.Equal(b.RawData(), bs[i/2].RawData()) {
					t.Error("wrong bytes")
				}
			}
		})
	}
	work.Wait()
	close(stop)
	watch.Wait()
	f.checkCount(t)
	if got := f.onDisk(t).Bytes; got > budget || got < budget/2 {
		t.Errorf("%d bytes on disk, want no more than the budget of %d, and not much less", got, budget)
	}
}

// What is being imported stays though nothing pins it yet, for an hour; when
// all of the budget is such, an import fails and says why.
func TestImportUnderWay(t *testing.T) {
	f := open(t, t.TempDir(), 100_000)
	old, mine, more := some(t, 1, 50, 1000), some(t, 100, 95, 1000), some(t, 300, 50, 1000)
	f.fetched(old...)
	f.pass(time.Minute)
	if err := f.PutMany(t.Context(), mine); err != nil {
		t.Fatalf("an import that fits: %v", err)
	}
	if _, err := f.Collect(t.Context(), 0, nil); err != nil {
		t.Fatal(err)
	}
	f.fetched(more...)
	for _, b := range mine {
		if !f.has(t, b) {
			t.Fatal("a block of an import under way was evicted")
		}
	}
	err := f.PutMany(t.Context(), more)
	if !errors.Is(err, ErrFull) || !bytes.Contains([]byte(err.Error()), []byte("ipfs.budget")) {
		t.Errorf("an import over the budget: %v, want ErrFull", err)
	}
	if st := f.onDisk(t); st.Bytes > 100_000 {
		t.Errorf("%d bytes, over the budget", st.Bytes)
	}
	f.pass(2 * time.Hour) // it was given up
	if err := f.PutMany(t.Context(), more); err != nil {
		t.Errorf("after an import was given up: %v", err)
	}
}

// A clock that was set back leaves times in the future; the blocks can go all
// the same, and those leased since stay.
func TestClockSetBack(t *testing.T) {
	f := open(t, t.TempDir(), 0)
	bs := some(t, 1, 2, 1000)
	f.fetched(bs[0])
	f.pass(-100 * time.Hour)
	if err := f.Put(t.Context(), bs[1]); err != nil {
		t.Fatal(err)
	}
	if freed, err := f.Collect(t.Context(), 0, nil); err != nil || freed.Blocks != 1 || !f.has(t, bs[1]) {
		t.Errorf("freed %+v, %v; want the older block alone", freed, err)
	}
}

// An evicted block comes back when it is brought again.
func TestEvictedComesBack(t *testing.T) {
	f := open(t, t.TempDir(), 0)
	b := blockstest.Random(t, 1, 100_000)
	f.fetched(b)
	if _, err := f.Collect(t.Context(), 0, nil); err != nil || f.has(t, b) {
		t.Fatalf("not evicted: %v", err)
	}
	f.fetched(b)
	got, err := f.Get(t.Context(), b.Cid())
	if err != nil || !bytes.Equal(got.RawData(), b.RawData()) {
		t.Errorf("an evicted block does not come back: %v", err)
	}
}

// A file system without room keeps what there is in check as a budget does.
func TestKeepFree(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{KeepFree: 100}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b := blockstest.Random(t, 1, 1000)
	if err := s.Put(t.Context(), b); !errors.Is(err, ErrFull) {
		t.Errorf("Put: %v, want ErrFull", err)
	}
	s.Keep(b)
	if ok, err := s.Has(t.Context(), b.Cid()); ok || err != nil {
		t.Errorf("kept, with all of the file system to be free: %v", err)
	}
}

// What a crash leaves: half a block, half a pin, a file of somebody else.
func TestAfterACrash(t *testing.T) {
	dir := t.TempDir()
	f := open(t, dir, 0)
	root, bs := file(t, 1, 600<<10)
	if err := f.PutMany(t.Context(), bs); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Pin(t.Context(), pins.Pin{Root: root, Parts: []cid.Cid{root}}); err != nil {
		t.Fatal(err)
	}
	f.Close()
	for _, name := range []string{"pins/.new-123", "pins/README", "blocks/README", "blocks/aa/README"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again := open(t, dir, 0)
	for name, want := range map[string]bool{"pins/.new-123": false, "pins/README": true, "blocks/README": true} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", name, err, want)
		}
	}
	list, err := again.Pins(t.Context())
	if err != nil || len(list) != 1 || list[0].Root != root || list[0].Err != nil {
		t.Errorf("pins: %+v, %v", list, err)
	}
	if st := again.Stat(); st.Blocks != int64(len(bs)) {
		t.Errorf("%+v, want %d blocks", st, len(bs))
	}
	again.pass(3 * time.Hour)
	if freed, err := again.Collect(t.Context(), 0, nil); err != nil || freed.Blocks != 0 {
		t.Errorf("freed %+v, %v; want nothing", freed, err)
	}
}
