package cache

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// evictOne opens the cache anew with a budget that one object has to go for, and
// returns which went: "" for none. fresh, layers and dir are the options.
func evictOne(t *testing.T, o Options, names map[Key]string) string {
	t.Helper()
	c := mustOpenWith(t, o)
	counted(t, c)
	o.Budget = c.Usage().Bytes
	before, err := os.ReadDir(c.Dir())
	if err != nil {
		t.Fatal(err)
	}
	kill(c)
	c = mustOpenWith(t, o)
	eventually(t, "an eviction has ended", func() bool {
		c.usage.mu.Lock()
		defer c.usage.mu.Unlock()
		return c.usage.EvictedObjects > 0 || c.usage.hopeless
	})
	kill(c)
	var gone []string
	for _, e := range before {
		if _, err := os.Lstat(c.path("objects", e.Name())); err != nil {
			k, _ := ParseKey(e.Name())
			gone = append(gone, names[k])
		}
	}
	return strings.Join(gone, "+")
}

// TestOrder checks what goes first, and what does not go.
func TestOrder(t *testing.T) {
	const size = 64 << 10
	o := Options{Dir: t.TempDir(), fresh: 1}
	c := mustOpenWith(t, o)
	names := map[Key]string{}
	keys := map[string]Key{}
	for i, name := range []string{"stray", "older", "old", "mounted", "cached", "shared", "open", "mapped"} {
		k, data := object(uint64(i), size)
		mustPut(t, c, k, data)
		names[k], keys[name] = name, k
	}
	o.Layers = &fakeLayers{list: []*fakeLayer{
		{id: "1", keys: []Key{keys["shared"], keys["older"]}},
		{id: "2", keys: []Key{keys["shared"], keys["old"], keys["open"]}},
		{id: "3", mounted: true, keys: []Key{keys["cached"], keys["mounted"], keys["mapped"]}},
		{id: "4", mounted: true, keys: []Key{keys["shared"]}},
	}}
	for _, name := range []string{"stray", "older", "old", "mounted", "shared", "open", "mapped"} {
		chill(t, c, keys[name])
	}
	open, err := os.Open(c.object(keys["open"]))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	f, err := os.Open(c.object(keys["mapped"]))
	if err != nil {
		t.Fatal(err)
	}
	mapped, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	kill(c)

	var order []string
	for range names {
		order = append(order, evictOne(t, o, names))
	}
	if want := []string{"stray", "older", "old", "mounted", "shared", "cached", "", ""}; !slices.Equal(order, want) {
		t.Errorf("went in the order %q, want %q", order, want)
	}
	if err := errors.Join(open.Close(), unix.Munmap(mapped)); err != nil {
		t.Fatal(err)
	}
	if got := []string{evictOne(t, o, names), evictOne(t, o, names)}; !slices.Equal(got, []string{"open", "mapped"}) {
		t.Errorf("closed and unmapped, went %q", got)
	}
}

// TestLostLayer checks that what is of no layer goes first again after a layer
// went, without a restart between.
func TestLostLayer(t *testing.T) {
	c := mustOpenWith(t, Options{Dir: t.TempDir()})
	one, two := &fakeLayer{id: "1"}, &fakeLayer{id: "2"}
	for i, x := range []struct {
		layers []Layer
		want   bool
	}{
		{[]Layer{one}, true},
		{[]Layer{one}, false},
		{[]Layer{one, two}, false},
		{[]Layer{two}, true},
		{[]Layer{two}, false},
		{nil, true},
	} {
		// Without a budget the evictor never asks.
		if got := c.lostLayer(x.layers); got != x.want {
			t.Errorf("step %d: %v, want %v", i, got, x.want)
		}
	}
}

// TestFreshStays checks that what has just come stays for those who are about to
// open it, whatever the budget, and that the writer is told.
func TestFreshStays(t *testing.T) {
	c := mustOpenWith(t, Options{Dir: t.TempDir(), Budget: 256 << 10, fresh: 1 << 62})
	k, data := object(1, 200<<10)
	mustPut(t, c, k, data)
	other, otherData := object(2, 200<<10)
	if err := c.Put(other, otherData); !errors.Is(err, ErrFull) {
		t.Errorf("put over the budget: %v", err)
	}
	mustBe(t, c, k, data)
	if u := c.Usage(); u.Refused == 0 || u.EvictedObjects != 0 || u.Bytes > 256<<10 {
		t.Errorf("usage: %+v", u)
	}
}

// TestPartialInUse checks that a partial object stays while somebody uses it,
// goes with what is known of it when nobody does, and can be begun again.
func TestPartialInUse(t *testing.T) {
	o := Options{Dir: t.TempDir(), Budget: 1 << 20, fresh: 1}
	c := mustOpenWith(t, o)
	data, chunks := contents(1, 300<<10, 300<<10)
	k := Key{1}
	p, err := c.Partial(k, chunks)
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, p, 0, data[:300<<10])
	fill := func(seed uint64) error {
		k, data := object(seed, 300<<10)
		return c.Put(k, data)
	}
	for seed := uint64(2); seed < 12; seed++ {
		if err := fill(seed); err != nil && !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
	}
	b := make([]byte, 100)
	if _, err := p.ReadAt(b, 1000); err != nil || !bytes.Equal(b, data[1000:1100]) || !p.Has(0) {
		t.Errorf("a partial object in use: %v", err)
	}
	if _, err := os.Lstat(c.partial(k)); err != nil {
		t.Errorf("a partial object in use was evicted: %v", err)
	}
	p.Release()
	seed := uint64(12)
	eventually(t, "a partial object that nobody uses goes", func() bool {
		seed++
		if err := fill(seed % 200); err != nil && !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
		_, err := os.Lstat(c.partial(k))
		return err != nil
	})
	p, err = c.Partial(k, chunks)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	if p.Has(0) {
		t.Error("has a chunk of what was evicted")
	}
}

// TestPressure has writers and readers of more than fits, while what is mounted
// changes: what is read is right, and the budget holds.
func TestPressure(t *testing.T) {
	const budget, slack = 2 << 20, 256 << 10
	layers := &fakeLayers{}
	type thing struct {
		key    Key
		data   []byte
		chunks []Chunk
	}
	var things []thing
	r := rand.New(rand.NewPCG(1, 2))
	for l := range 4 {
		layer := &fakeLayer{id: string(rune('a' + l)), mounted: l > 1, chunks: map[Key][]Chunk{}}
		for i := range 50 {
			sizes := []int64{1 + r.Int64N(60_000)}
			if i%5 == 0 {
				sizes = append(sizes, 1+r.Int64N(60_000), 1+r.Int64N(60_000))
			}
			data, chunks := contents(uint64(l*50+i), sizes...)
			k := Key(chunks[0].Digest)
			if len(chunks) > 1 {
				k[0]++
				layer.chunks[k] = chunks
			}
			layer.keys = append(layer.keys, k)
			things = append(things, thing{k, data, chunks})
		}
		layers.list = append(layers.list, layer)
	}
	c := mustOpenWith(t, Options{Dir: t.TempDir(), Budget: budget, Layers: layers, fresh: 1})
	read := func(x thing) bool {
		f, err := c.OpenObject(x.key)
		if err != nil {
			return false
		}
		defer f.Close()
		got := make([]byte, len(x.data)+1)
		n, _ := f.ReadAt(got, 0)
		if !bytes.Equal(got[:n], x.data) {
			t.Errorf("object %s is not what was put", x.key)
		}
		return true
	}
	write := func(x thing) error {
		if len(x.chunks) == 1 {
			return c.Put(x.key, x.data)
		}
		p, err := c.Partial(x.key, x.chunks)
		if err != nil {
			return err
		}
		defer p.Release()
		for i := range x.chunks {
			if p.Has(i) {
				continue
			}
			if err := p.Write(i, x.data[p.offs[i]:p.offs[i+1]]); err != nil {
				return err
			}
		}
		return nil
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(3, uint64(w)))
			for range 300 {
				x := things[r.IntN(len(things))]
				if read(x) {
					continue
				}
				if err := write(x); err != nil && !errors.Is(err, ErrFull) {
					t.Error(err)
				}
				if n := c.Usage().Bytes; n > budget+slack {
					t.Errorf("%d bytes are held, of %d allowed", n, budget)
				}
			}
		})
	}
	wg.Wait()
	eventually(t, "some objects were evicted", func() bool { return c.Usage().EvictedObjects > 0 })
	kill(c)
	bytes, files := onDisk(t, c)
	u := c.usage.Usage
	if off := bytes - u.Bytes; off < int64(-files)*4096 || off > int64(files)*4096 {
		t.Errorf("%d bytes are on disk, and %d accounted", bytes, u.Bytes)
	}
	if bytes > budget+slack {
		t.Errorf("%d bytes are on disk, of %d allowed", bytes, budget)
	}
	c = mustOpenWith(t, Options{Dir: c.opts.Dir, fresh: 1})
	counted(t, c)
	if u := c.Usage(); u.Bytes != bytes || u.Changed+u.Damaged > 0 {
		t.Errorf("after a restart: %+v, want %d bytes and no damage", u, bytes)
	}
}
