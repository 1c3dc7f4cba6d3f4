package cache

import (
	"bytes"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func TestKey(t *testing.T) {
	k := Key{0xab, 1}
	if got := k.String(); len(got) != 64 || got[:4] != "ab01" {
		t.Errorf("String() = %q", got)
	}
	if back, ok := ParseKey(k.String()); !ok || back != k {
		t.Errorf("ParseKey(String()) = %v, %v", back, ok)
	}
	for _, bad := range []string{"", "ab", k.String()[1:], k.String() + "0", "AB" + k.String()[2:], "zz" + k.String()[2:]} {
		if _, ok := ParseKey(bad); ok {
			t.Errorf("ParseKey(%q) accepted", bad)
		}
	}
}

func TestPutAndKeepOverRestart(t *testing.T) {
	dir := t.TempDir()
	c := mustOpen(t, dir)
	data, chunks := contents(1, 5000)
	k := Key(chunks[0].Digest)
	if c.Has(k) {
		t.Fatal("an empty cache has an object")
	}
	if _, err := c.OpenObject(k); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("open of what is not there: %v", err)
	}
	if err := c.Put(k, data); err != nil {
		t.Fatal(err)
	}
	mustBe(t, c, k, data)
	st, err := os.Stat(filepath.Join(c.Dir(), k.String()))
	if err != nil || st.Mode().Perm() != 0o444 {
		t.Fatalf("an object can be written to: %v, %v", st.Mode(), err)
	}

	// Killed: the next process of the same boot trusts what it finds.
	kill(c)
	c = mustOpen(t, dir)
	mustBe(t, c, k, data)
	// Ended well: so does one after a reboot.
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = mustOpen(t, dir)
	mustBe(t, c, k, data)
}

func TestPartialCompletes(t *testing.T) {
	dir := t.TempDir()
	c := mustOpen(t, dir)
	data, chunks := contents(2, 1000, 4096, 1, 7000)
	k := Key{2}
	p, err := c.Partial(k, chunks)
	if err != nil {
		t.Fatal(err)
	}
	off := []int64{0, 1000, 5096, 5097, 12097}
	for n, i := range []int{3, 0, 2, 1} {
		if p.Complete() || c.Has(k) {
			t.Fatalf("complete after %d of 4 chunks", n)
		}
		if p.Has(i) {
			t.Fatalf("has chunk %d before it was written", i)
		}
		mustWrite(t, p, i, data[off[i]:off[i+1]])
		if !p.Has(i) {
			t.Fatalf("has no chunk %d", i)
		}
	}
	if !p.Complete() {
		t.Fatal("not complete with all chunks")
	}
	mustBe(t, c, k, data)
	b := make([]byte, 100)
	if _, err := p.ReadAt(b, 950); err != nil || !bytes.Equal(b, data[950:1050]) {
		t.Fatalf("a reader that has it open reads something else: %v", err)
	}
	p.Release()
	if left, _ := os.ReadDir(filepath.Join(dir, "partial")); len(left) > 0 {
		t.Fatalf("left in partial/: %v", left)
	}
	// Asked for again, it is there.
	p, err = c.Partial(k, chunks)
	if err != nil || !p.Complete() || !p.Has(1) {
		t.Fatalf("asked for again: %v", err)
	}
	p.Release()
	if n := len(c.partials); n > 0 {
		t.Fatalf("%d partial objects stay open", n)
	}
}

func TestPartialIsShared(t *testing.T) {
	c := mustOpen(t, t.TempDir())
	data, chunks := contents(3, 10, 10)
	a, _ := c.Partial(Key{3}, chunks)
	b, _ := c.Partial(Key{3}, chunks)
	if a != b {
		t.Fatal("two of one key")
	}
	a.Release()
	mustWrite(t, b, 0, data[:10])
	b.Release()
	// Nobody uses it: what was verified is known still.
	again, err := c.Partial(Key{3}, chunks)
	if err != nil || again.state[0] != present {
		t.Fatalf("forgotten at once: %v", err)
	}
	again.Release()
	for i := range maxIdle + 10 {
		p, err := c.Partial(Key{4, byte(i)}, chunks)
		if err != nil {
			t.Fatal(err)
		}
		p.Release()
	}
	if len(c.partials) != maxIdle || len(c.idle) != maxIdle {
		t.Fatalf("%d partial objects open, %d idle, at most %d allowed", len(c.partials), len(c.idle), maxIdle)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if len(c.partials) != 0 {
		t.Fatal("open after Close")
	}
	if _, err := c.Partial(Key{3}, chunks); !errors.Is(err, ErrClosed) {
		t.Fatalf("use after Close: %v", err)
	}
}

// TestPartialAfterRestart checks that a new process takes up what an earlier
// one wrote, and none of what was damaged since.
func TestPartialAfterRestart(t *testing.T) {
	dir := t.TempDir()
	data, chunks := contents(5, 5000, 5000, 5000)
	k := Key{5}
	c := mustOpen(t, dir)
	p, err := c.Partial(k, chunks)
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, p, 0, data[:5000])
	mustWrite(t, p, 2, data[10000:])

	f, err := os.OpenFile(c.partial(k), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{^data[10007]}, 10007); err != nil {
		t.Fatal(err)
	}
	f.Close()

	kill(c)
	c = mustOpen(t, dir)
	p, err = c.Partial(k, chunks)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	if !p.Has(0) {
		t.Error("lost a chunk")
	}
	if p.Has(1) {
		t.Error("has a chunk that was never written")
	}
	if p.Has(2) {
		t.Error("has a chunk that was damaged")
	}
	mustWrite(t, p, 1, data[5000:10000])
	if c.Has(k) {
		t.Fatal("complete with a damaged chunk")
	}
	mustWrite(t, p, 2, data[10000:])
	mustBe(t, c, k, data)
}

// TestPartialOfOtherLength checks that a file that cannot be this object's is
// not taken for it: the key's list of chunks is another, or it was cut short.
func TestPartialOfOtherLength(t *testing.T) {
	dir := t.TempDir()
	c := mustOpen(t, dir)
	k := Key{6}
	path := filepath.Join(dir, "partial", k.String())
	if err := os.WriteFile(path, []byte{1, 1, 1}, 0o600); err != nil {
		t.Fatal(err)
	}
	_, chunks := contents(6, 10, 10)
	p, err := c.Partial(k, chunks)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	if p.Has(0) || p.Has(1) {
		t.Error("chunks out of nothing")
	}
	if st, err := os.Stat(path); err != nil || st.Size() != 4096+2 {
		t.Errorf("the file: %v, %v; want 4096 bytes for the chunks and one flag for each", st, err)
	}
}

// TestPartialThatCannotBe asks for an object that no file is long enough for:
// the error is told at once, not by the first write.
func TestPartialThatCannotBe(t *testing.T) {
	c := mustOpen(t, t.TempDir())
	p, err := c.Partial(Key{11}, []Chunk{{Size: math.MaxInt64}})
	if err == nil {
		p.Release()
		t.Fatal("a file of 8 EiB was made")
	}
}

func TestWriteOfWrongLength(t *testing.T) {
	c := mustOpen(t, t.TempDir())
	_, chunks := contents(7, 10, 10)
	p, err := c.Partial(Key{7}, chunks)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	if err := p.Write(0, make([]byte, 11)); err == nil || p.Has(0) {
		t.Errorf("a chunk longer than it is: %v", err)
	}
}

// TestPowerCut plays a machine that went down with the cache open: another boot
// finds files that lost their contents.
func TestPowerCut(t *testing.T) {
	dir := t.TempDir()
	c := mustOpen(t, dir)
	good, goodChunks := contents(8, 6000)
	bad, badChunks := contents(9, 6000)
	short, shortChunks := contents(10, 3000, 3000)
	gk, bk, sk := Key(goodChunks[0].Digest), Key(badChunks[0].Digest), Key{10}
	for k, data := range map[Key][]byte{gk: good, bk: bad, sk: short} {
		if err := c.Put(k, data); err != nil {
			t.Fatal(err)
		}
	}
	damage := func(k Key, fn func(path string) error) {
		path := filepath.Join(c.Dir(), k.String())
		if err := errors.Join(os.Chmod(path, 0o600), fn(path)); err != nil {
			t.Fatal(err)
		}
	}
	damage(bk, func(p string) error { return os.WriteFile(p, make([]byte, 6000), 0o600) })
	damage(sk, func(p string) error { return os.Truncate(p, 3000) })
	if err := os.WriteFile(filepath.Join(dir, "session"), []byte("an earlier boot"), 0o600); err != nil {
		t.Fatal(err)
	}

	kill(c)
	c = mustOpen(t, dir)
	for _, k := range []Key{gk, bk, sk} {
		if c.Has(k) {
			t.Fatalf("object %s is trusted after a power cut", k)
		}
	}
	for _, x := range []struct {
		k    Key
		c    []Chunk
		want bool
	}{{gk, goodChunks, true}, {bk, badChunks, false}, {sk, shortChunks, false}, {Key{99}, goodChunks, false}} {
		ok, err := c.Recover(x.k, x.c)
		if err != nil || ok != x.want || c.Has(x.k) != x.want {
			t.Errorf("Recover(%s) = %v, %v, want %v", x.k, ok, err, x.want)
		}
	}
	mustBe(t, c, gk, good)
}

// TestConcurrentWriters checks that chunks written from many sides at a time,
// some twice, make the object.
func TestConcurrentWriters(t *testing.T) {
	c := mustOpen(t, t.TempDir())
	sizes := make([]int64, 64)
	for i := range sizes {
		sizes[i] = int64(100 + i)
	}
	data, chunks := contents(11, sizes...)
	k := Key{11}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			p, err := c.Partial(k, chunks)
			if err != nil {
				t.Error(err)
				return
			}
			defer p.Release()
			for i := range chunks {
				j := (i*7 + w*13) % len(chunks)
				if p.Has(j) {
					continue
				}
				if err := p.Write(j, data[p.offs[j]:p.offs[j+1]]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	mustBe(t, c, k, data)
}
