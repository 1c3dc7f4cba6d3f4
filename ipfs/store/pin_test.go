package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store/pins"
)

// collectAll collects what may go, of imports under way too.
func (f *fixture) collectAll(t testing.TB) Freed {
	t.Helper()
	f.pass(3 * time.Hour)
	freed, err := f.Collect(t.Context(), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	return freed
}

// A pin of several DAGs keeps all blocks of all of them, and nothing else; what
// two pins share stays until both are gone.
func TestPin(t *testing.T) {
	f := open(t, t.TempDir(), 0)
	rootA, a := file(t, 1, 600<<10) // four blocks
	rootB, b := file(t, 2, 100)     // one
	rootC, c := file(t, 3, 700<<10)
	other := some(t, 100, 5, 1000)
	if err := errors.Join(f.PutMany(t.Context(), a), f.PutMany(t.Context(), b), f.PutMany(t.Context(), c), f.PutMany(t.Context(), other)); err != nil {
		t.Fatal(err)
	}
	p, err := f.Pin(t.Context(), pins.Pin{Root: rootB, Name: "b", Parts: []cid.Cid{rootB, rootA, rootA}})
	if err != nil || p.Blocks != len(a)+len(b) || !p.Time.Equal(f.now()) {
		t.Fatalf("%+v, %v", p, err)
	}
	if _, err := f.Pin(t.Context(), pins.Pin{Root: rootC, Parts: []cid.Cid{rootC, rootA}}); err != nil {
		t.Fatal(err)
	}
	if held, err := f.Held(t.Context(), p); err != nil || held != p.Bytes || held < 600<<10 {
		t.Errorf("held %d of %d, %v", held, p.Bytes, err)
	}
	if freed := f.collectAll(t); freed.Blocks != int64(len(other)) {
		t.Errorf("freed %+v, want the %d that nothing pins", freed, len(other))
	}
	for range 2 {
		err = f.Unpin(t.Context(), rootC)
	}
	if !errors.Is(err, pins.ErrNotPinned) {
		t.Errorf("unpinned twice: %v", err)
	}
	if freed := f.collectAll(t); freed.Blocks != int64(len(c)) {
		t.Errorf("freed %+v, want the %d of C alone", freed, len(c))
	}
	if err := f.Unpin(t.Context(), rootB); err != nil {
		t.Fatal(err)
	}
	f.collectAll(t)
	if st := f.onDisk(t); st.Blocks != 0 {
		t.Errorf("%+v left", st)
	}
}

// What was put is leased until it is pinned; once it was, an unpin frees it at
// once.
func TestPinEndsLeases(t *testing.T) {
	f := open(t, t.TempDir(), 0)
	root, bs := file(t, 1, 600<<10)
	if err := f.PutMany(t.Context(), bs); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Pin(t.Context(), pins.Pin{Root: root, Parts: []cid.Cid{root}}); err != nil {
		t.Fatal(err)
	}
	if err := f.Unpin(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	if freed, err := f.Collect(t.Context(), 0, nil); err != nil || freed.Blocks != int64(len(bs)) {
		t.Errorf("freed %+v, %v; want all %d", freed, err, len(bs))
	}
}

// Nothing is pinned that is not here whole; the error says what is missing.
func TestPinIncomplete(t *testing.T) {
	f := open(t, t.TempDir(), 0)
	root, bs := file(t, 1, 600<<10)
	f.fetched(bs...)
	for _, missing := range bs { // leaves and the root
		if err := f.DeleteBlock(t.Context(), missing.Cid()); err != nil {
			t.Fatal(err)
		}
		_, err := f.Pin(t.Context(), pins.Pin{Root: root, Parts: []cid.Cid{root}})
		var m *MissingError
		if !errors.As(err, &m) || m.N != 1 || m.CIDs[0] != missing.Cid() || !strings.Contains(err.Error(), root.String()) {
			t.Errorf("without %s: %v", missing.Cid(), err)
		}
		f.fetched(missing)
	}
	list, err := f.Pins(t.Context())
	if err != nil || len(list) != 0 {
		t.Errorf("half pinned: %+v, %v", list, err)
	}
}

// A leaf of a pin that proves damaged goes, is missed, and does not take the
// pin's other blocks with it; nor does a damaged root.
func TestPinnedAndDamaged(t *testing.T) {
	f := open(t, t.TempDir(), 0)
	root, bs := file(t, 1, 600<<10)
	f.fetched(bs...)
	p, err := f.Pin(t.Context(), pins.Pin{Root: root, Parts: []cid.Cid{root}})
	if err != nil {
		t.Fatal(err)
	}
	blockstest.Damage(t, f, root)
	if held, err := f.Held(t.Context(), p); err != nil || held != 0 {
		t.Errorf("held %d, %v; want nothing that can be reached", held, err)
	}
	if freed := f.collectAll(t); freed.Blocks != 0 {
		t.Errorf("freed %+v: leaves of a pin", freed)
	}
}

// A pin whose file is damaged could keep anything: nothing goes until it is
// pinned again.
func TestDamagedPin(t *testing.T) {
	f := open(t, t.TempDir(), 0)
	root, bs := file(t, 1, 600<<10)
	f.fetched(bs...)
	pin := pins.Pin{Root: root, Parts: []cid.Cid{root}}
	if _, err := f.Pin(t.Context(), pin); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(f.dir, "pins", root.String())
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)-40] ^= 1
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	f.pass(3 * time.Hour)
	_, err = f.Collect(t.Context(), 0, nil)
	if !errors.Is(err, pins.ErrDamaged) || !strings.Contains(err.Error(), root.String()) {
		t.Errorf("Collect: %v, want the damaged pin named", err)
	}
	for _, b := range bs {
		if !f.has(t, b) {
			t.Fatal("a block of a damaged pin went")
		}
	}
	if _, err := f.Pin(t.Context(), pin); err != nil {
		t.Fatal(err)
	}
	if freed := f.collectAll(t); freed.Blocks != 0 {
		t.Errorf("freed %+v", freed)
	}
}

// Pinning, importing and collecting at once lose nothing.
func TestCollectWhilePinning(t *testing.T) {
	f := open(t, t.TempDir(), 0)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := f.Collect(t.Context(), 0, nil); err != nil {
				t.Error(err)
			}
		}
	}()
	roots := map[cid.Cid][]cid.Cid{}
	for i := range 20 {
		root, bs := file(t, uint64(i), 600<<10)
		if err := f.PutMany(t.Context(), bs); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Pin(t.Context(), pins.Pin{Root: root, Parts: []cid.Cid{root}}); err != nil {
			t.Errorf("pin %d: %v", i, err)
		}
		for _, b := range bs {
			roots[root] = append(roots[root], b.Cid())
		}
	}
	close(stop)
	<-done
	for root, cids := range roots {
		for _, c := range cids {
			if ok, err := f.Has(t.Context(), c); !ok || err != nil {
				t.Fatalf("%s of pin %s: %v, %v", c, root, ok, err)
			}
		}
	}
	f.checkCount(t)
}
