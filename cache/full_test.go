package cache

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/cache/disktest"
)

// fill puts objects of a MiB until the cache is full, and returns them.
func fill(t *testing.T, c *Cache, seed uint64) (keys []Key, full error) {
	t.Helper()
	for range 64 {
		seed++
		k, data := object(seed, 1<<20)
		if err := c.Put(k, data); err != nil {
			return keys, err
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// TestFullDisk fills the disk: what was put is read still, the rest is refused,
// and the cache closes, opens and goes on when there is room again.
func TestFullDisk(t *testing.T) {
	dir := disktest.Mount(t, 16<<20)
	ballast := filepath.Join(dir, "ballast")
	must(t, os.WriteFile(ballast, make([]byte, 3<<20), 0o600))
	o := Options{Dir: filepath.Join(dir, "cache")}
	c := mustOpenWith(t, o)
	counted(t, c)
	keys, err := fill(t, c, 0)
	if !errors.Is(err, ErrFull) || len(keys) == 0 {
		t.Fatalf("after %d MiB: %v", len(keys), err)
	}
	data, chunks := contents(100, 1<<20, 1<<20)
	p, err := c.Partial(Key{1}, chunks)
	if err == nil {
		if err := p.Write(0, data[:1<<20]); !errors.Is(err, ErrFull) || p.Has(0) {
			t.Errorf("a chunk on a full disk: %v", err)
		}
		p.Release()
	} else if !errors.Is(err, ErrFull) {
		t.Errorf("a partial object on a full disk: %v", err)
	}
	if left, err := os.ReadDir(c.path("tmp")); err != nil || len(left) > 0 {
		t.Errorf("left in tmp/: %v, %v", left, err)
	}
	if u := c.Usage(); u.Refused < 2 || u.Objects != int64(len(keys)) {
		t.Errorf("usage: %+v", u)
	}
	// Not a byte is left.
	f, err := os.OpenFile(filepath.Join(dir, "rest"), os.O_CREATE|os.O_WRONLY, 0o600)
	must(t, err)
	for err == nil {
		_, err = f.Write(make([]byte, 512))
	}
	must(t, f.Close())
	must(t, c.Close())
	c = mustOpenWith(t, o)
	counted(t, c)
	for i, k := range keys {
		_, data := object(uint64(i+1), 1<<20)
		mustBe(t, c, k, data)
	}
	if n, _ := onDisk(t, c); c.Usage().Bytes != n {
		t.Errorf("%d bytes are on disk, and %d accounted", n, c.Usage().Bytes)
	}

	must(t, os.Remove(ballast))
	if more, _ := fill(t, c, 110); len(more) == 0 {
		t.Error("nothing is kept when there is room again")
	}
	must(t, c.Close())
}

// TestKeepFree checks that a part of the file system stays free, and that what
// others write takes objects' place.
func TestKeepFree(t *testing.T) {
	const percent, slack = 50, 1 << 20
	dir := disktest.Mount(t, 32<<20)
	o := Options{Dir: filepath.Join(dir, "cache"), KeepFree: percent}
	c := mustOpenWith(t, o)
	counted(t, c)
	free := func() int64 {
		var st unix.Statfs_t
		must(t, unix.Statfs(dir, &st))
		return int64(st.Bavail)*st.Bsize - int64(st.Blocks)*st.Bsize*percent/100
	}
	keys, err := fill(t, c, 0)
	if !errors.Is(err, ErrFull) || len(keys) < 4 {
		t.Fatalf("after %d MiB: %v", len(keys), err)
	}
	if n := free(); n < -slack {
		t.Errorf("%d bytes less are free than should be", -n)
	}
	if c.HasRoom(1 << 20) {
		t.Error("says that there is room")
	}
	kill(c)
	must(t, os.WriteFile(filepath.Join(dir, "others"), make([]byte, 3<<20), 0o600))
	o.fresh = 1
	c = mustOpenWith(t, o)
	eventually(t, "objects give way", func() bool { return c.Usage().EvictedObjects >= 3 && free() >= -slack })
	eventually(t, "new ones replace old ones", func() bool {
		keys, err := fill(t, c, 100)
		if err != nil && !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
		return len(keys) > 16
	})
	if n := free(); n < -slack {
		t.Errorf("%d bytes less are free than should be", -n)
	}
}

// TestFarTooSmall checks that a budget for nothing keeps nothing, and says so.
func TestFarTooSmall(t *testing.T) {
	c := mustOpenWith(t, Options{Dir: t.TempDir(), Budget: 8 << 10})
	if c.HasRoom(9000) || !c.HasRoom(4000) {
		t.Error("HasRoom is wrong")
	}
	k, data := object(1, 9000)
	if err := c.Put(k, data); !errors.Is(err, ErrFull) || c.Has(k) {
		t.Errorf("put: %v", err)
	}
	several, chunks := contents(2, 9000, 9000)
	p, err := c.Partial(Key{2}, chunks)
	must(t, err)
	defer p.Release()
	if err := p.Write(0, several[:9000]); !errors.Is(err, ErrFull) || p.Has(0) {
		t.Errorf("write: %v", err)
	}
	if u := c.Usage(); u.Refused != 2 || u.Objects != 0 || u.Limit != 8<<10 {
		t.Errorf("usage: %+v", u)
	}
}

// TestBudgetOfPartial checks that an object of several chunks takes no more than
// the budget for a moment either: its flags are some of it.
func TestBudgetOfPartial(t *testing.T) {
	const budget = 256 << 10
	c := mustOpenWith(t, Options{Dir: t.TempDir(), Budget: budget})
	data, chunks := contents(1, budget, budget)
	p, err := c.Partial(Key{1}, chunks)
	must(t, err)
	defer p.Release()
	if err := p.Write(0, data[:budget]); !errors.Is(err, ErrFull) {
		t.Errorf("a chunk of the size of the budget: %v", err)
	}
	if u := c.Usage(); u.Bytes > budget {
		t.Errorf("%d bytes are held of a budget of %d", u.Bytes, budget)
	}
}

// TestPutTwice checks that the second of two equal objects changes nothing.
func TestPutTwice(t *testing.T) {
	c := mustOpen(t, t.TempDir())
	counted(t, c)
	k, data := object(1, 9000)
	mustPut(t, c, k, data)
	f, err := c.OpenObject(k)
	must(t, err)
	defer f.Close()
	before := c.Usage()
	mustPut(t, c, k, data)
	if after := c.Usage(); after != before {
		t.Errorf("usage: %+v, before %+v", after, before)
	}
	var st unix.Stat_t
	if must(t, unix.Fstat(int(f.Fd()), &st)); st.Nlink != 1 {
		t.Error("the first one was replaced: its readers no longer share the page cache with new ones")
	}
}
