package cache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/cache/internal/kernel"
)

// flip changes one byte of an object's file.
func flip(t *testing.T, c *Cache, k Key) {
	t.Helper()
	f, err := os.OpenFile(c.object(k), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], 1234); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{^b[0]}, 1234); err != nil {
		t.Fatal(err)
	}
}

// flipUnseen changes one byte, and leaves the file the time that it had.
func flipUnseen(t *testing.T, c *Cache, k Key) {
	t.Helper()
	st, err := os.Stat(c.object(k))
	if err != nil {
		t.Fatal(err)
	}
	flip(t, c, k)
	if err := os.Chtimes(c.object(k), time.Time{}, st.ModTime()); err != nil {
		t.Fatal(err)
	}
}

// replace puts another file, of the same length, in an object's place.
func replace(t *testing.T, c *Cache, k Key) {
	t.Helper()
	tmp := c.path("other")
	if err := errors.Join(os.WriteFile(tmp, make([]byte, 9000), 0o444), os.Rename(tmp, c.object(k))); err != nil {
		t.Fatal(err)
	}
}

// instead puts something in an object's place that is no file.
func instead(put func(path string) error) func(*testing.T, *Cache, Key) {
	return func(t *testing.T, c *Cache, k Key) {
		t.Helper()
		if err := errors.Join(os.Remove(c.object(k)), put(c.object(k))); err != nil {
			t.Fatal(err)
		}
	}
}

// TestChanged has somebody else change objects, while the cache is open and
// while it is not. What is damaged is not served again; what is whole is.
func TestChanged(t *testing.T) {
	for name, x := range map[string]struct {
		change func(*testing.T, *Cache, Key)
		whole  bool
	}{
		"flipped":   {change: flip},
		"truncated": {change: func(t *testing.T, c *Cache, k Key) { must(t, os.Truncate(c.object(k), 8000)) }},
		"longer":    {change: func(t *testing.T, c *Cache, k Key) { must(t, os.Truncate(c.object(k), 9001)) }},
		"replaced":  {change: replace},
		"link":      {change: instead(func(p string) error { return os.Symlink("/etc/passwd", p) })},
		"directory": {change: instead(func(p string) error { return os.Mkdir(p, 0o700) })},
		"pipe":      {change: instead(func(p string) error { return unix.Mkfifo(p, 0o600) })},
		"touched":   {change: func(t *testing.T, c *Cache, k Key) { must(t, os.Chtimes(c.object(k), time.Now(), time.Now())) }, whole: true},
	} {
		for _, chunks := range []string{"one chunk", "several"} {
			for _, while := range []string{"open", "closed"} {
				t.Run(name+", "+chunks+", "+while, func(t *testing.T) {
					t.Parallel()
					testChanged(t, chunks == "several", while == "closed", x.whole, x.change)
				})
			}
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testChanged(t *testing.T, several, closed, whole bool, change func(*testing.T, *Cache, Key)) {
	sizes := []int64{9000}
	if several {
		sizes = []int64{4000, 5000}
	}
	data, chunks := contents(1, sizes...)
	k := Key(chunks[0].Digest)
	o := Options{Dir: t.TempDir(), Layers: &fakeLayers{list: []*fakeLayer{{keys: []Key{k}, chunks: map[Key][]Chunk{k: chunks}}}}}
	c := mustOpenWith(t, o)
	counted(t, c)
	mustPut(t, c, k, data)
	if closed {
		must(t, c.Close())
	}
	change(t, c, k)
	if closed {
		c = mustOpenWith(t, o)
	} else if c.Has(k) {
		// At once, where we are asked; by name a moment later.
		t.Error("is an object still")
	}
	if whole {
		eventually(t, "an object is verified and back", func() bool { return c.Usage().Changed == 1 && c.Has(k) })
		mustBe(t, c, k, data)
		if u := c.Usage(); u.Damaged > 0 || u.Objects != 1 {
			t.Errorf("usage: %+v", u)
		}
		return
	}
	eventually(t, "a damaged object is gone", func() bool {
		_, err := os.Lstat(c.object(k))
		left, _ := os.ReadDir(c.path("suspect"))
		return err != nil && len(left) == 0 && c.Usage().Changed == 1 && !c.suspects.Load()
	})
	if u := c.Usage(); u.Objects != 0 {
		t.Errorf("nothing is left, but is accounted: %+v", u)
	}
	mustPut(t, c, k, data)
	mustBe(t, c, k, data)
	// What others take or add is put right at the next start at the latest.
	must(t, c.Close())
	c = mustOpenWith(t, o)
	counted(t, c)
	if n, _ := onDisk(t, c); c.Usage().Bytes != n || n == 0 {
		t.Errorf("%d bytes are on disk, and %d accounted", n, c.Usage().Bytes)
	}
}

// TestChangedWithoutLayers checks that a changed object waits for who knows what
// it should be.
func TestChangedWithoutLayers(t *testing.T) {
	c := mustOpen(t, t.TempDir())
	counted(t, c)
	data, chunks := contents(1, 4000, 5000)
	k := Key{1}
	mustPut(t, c, k, data)
	must(t, os.Chtimes(c.object(k), time.Now(), time.Now()))
	eventually(t, "a touched object is set aside", func() bool { return c.Usage().Changed == 1 })
	if ok, err := c.Recover(k, chunks); !ok || err != nil {
		t.Fatalf("Recover: %v, %v", ok, err)
	}
	mustBe(t, c, k, data)
}

// TestDamagedWhileOpen checks that who has a damaged object open keeps it, that
// its space is told, and that overlays are told to forget it.
func TestDamagedWhileOpen(t *testing.T) {
	k, data := object(1, 9000)
	layers := &fakeLayers{list: []*fakeLayer{{keys: []Key{k}}}}
	c := mustOpenWith(t, Options{Dir: t.TempDir(), Layers: layers})
	counted(t, c)
	mustPut(t, c, k, data)
	f, err := c.OpenObject(k)
	must(t, err)
	defer f.Close()
	flip(t, c, k)
	eventually(t, "a damaged object is removed", func() bool { return c.Usage().Damaged == 1 })
	if got, err := io.ReadAll(f); err != nil || len(got) != len(data) {
		t.Errorf("who has it open reads %d bytes, %v", len(got), err)
	}
	if u := c.Usage(); u.Lingering < 9000 || u.Bytes != 0 {
		t.Errorf("while it is open: %+v", u)
	}
	must(t, f.Close())
	if n := c.Usage().Lingering; n != 0 {
		t.Errorf("%d bytes linger when nobody has it open", n)
	}
	eventually(t, "overlays forget", func() bool {
		layers.mu.Lock()
		defer layers.mu.Unlock()
		return layers.forgot > 0
	})
}

// TestPartialOfDamaged checks that what was complete is made anew while an
// earlier user of it still has it.
func TestPartialOfDamaged(t *testing.T) {
	c := mustOpen(t, t.TempDir())
	counted(t, c)
	data, chunks := contents(1, 4000, 5000)
	k := Key{1}
	mustPut(t, c, k, data)
	old, err := c.Partial(k, chunks)
	must(t, err)
	defer old.Release()
	flip(t, c, k)
	p, err := c.Partial(k, chunks)
	must(t, err)
	defer p.Release()
	if p == old || p.Complete() || p.Has(0) {
		t.Fatal("a damaged object is taken for complete")
	}
	mustWrite(t, p, 0, data[:4000])
	mustWrite(t, p, 1, data[4000:])
	mustBe(t, c, k, data)
}

// TestOverflow checks that changes are found that the kernel could not tell of
// one by one.
func TestOverflow(t *testing.T) {
	c := mustOpen(t, t.TempDir())
	counted(t, c)
	k, data := object(1, 9000)
	mustPut(t, c, k, data)
	c.halt() // nobody watches
	flip(t, c, k)
	event := make([]byte, unix.SizeofInotifyEvent)
	binary.NativeEndian.PutUint32(event[4:], unix.IN_Q_OVERFLOW)
	c.changed(t.Context(), event)
	if u := c.Usage(); u.Changed != 1 || u.Objects != 0 {
		t.Errorf("usage: %+v", u)
	}
}

// TestScrub checks that a scrub finds what nothing else shows, and that it
// leaves out of memory what was not in it.
func TestScrub(t *testing.T) {
	good, goodData := object(1, 3<<20)
	bad, badData := object(2, 9000)
	several, severalChunks := contents(3, 4000, 5000)
	sk, stray := Key{3}, Key{4}
	o := Options{Dir: t.TempDir(), rate: 1 << 30, Layers: &fakeLayers{list: []*fakeLayer{
		{keys: []Key{good, bad, sk}, chunks: map[Key][]Chunk{sk: severalChunks}},
	}}}
	c := mustOpenWith(t, o)
	mustPut(t, c, good, goodData)
	mustPut(t, c, bad, badData)
	mustPut(t, c, sk, several)
	mustPut(t, c, stray, several) // of several chunks, which nobody knows any more
	chill(t, c, good)
	kill(c)
	flipUnseen(t, c, bad)
	flipUnseen(t, c, sk)

	o.Scrub = time.Hour
	c = mustOpenWith(t, o)
	counted(t, c)
	if !c.Has(bad) || !c.Has(sk) {
		t.Fatal("noticed without reading: then this is no test of a scrub")
	}
	eventually(t, "the time until the first scrub runs", func() bool { _, err := os.Stat(c.path("scrubbed")); return err == nil })
	kill(c)
	long := time.Now().Add(-2 * o.Scrub)
	must(t, os.Chtimes(c.path("scrubbed"), long, long))

	c = mustOpenWith(t, o)
	eventually(t, "a scrub has ended", func() bool {
		st, err := os.Stat(c.path("scrubbed"))
		return err == nil && st.ModTime().After(long.Add(o.Scrub))
	})
	for k, want := range map[Key]bool{good: true, bad: false, sk: false, stray: true} {
		if c.Has(k) != want {
			t.Errorf("object %s: %v, want %v", k, !want, want)
		}
	}
	f, err := os.Open(c.object(good))
	must(t, err)
	defer f.Close()
	if n := kernel.Cached(f); n > 0 {
		t.Errorf("the scrub left %d pages in memory", n)
	}
	if u := c.Usage(); u.Damaged != 2 || u.ScrubbedObjects != 1 || u.ScrubbedBytes < 3<<20 || u.Objects != 2 {
		t.Errorf("usage: %+v", u)
	}
	mustPut(t, c, bad, badData)
	mustBe(t, c, bad, badData)
}

// TestSeal checks that good objects are sealed, through a file that nobody can
// write to, and that nothing depends on it.
func TestSeal(t *testing.T) {
	var sealed [][]byte
	result := error(nil)
	o := Options{Dir: t.TempDir(), seal: func(f *os.File) error {
		if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_ACCMODE != unix.O_RDONLY {
			t.Errorf("sealed with flags %x, %v", flags, err)
		}
		b, err := os.ReadFile(f.Name())
		sealed = append(sealed, b)
		return errors.Join(result, err)
	}}
	c := mustOpenWith(t, o)
	counted(t, c)
	k, data := object(1, 8192)
	mustPut(t, c, k, data)
	c.halt()
	sealAll := func(c *Cache) *tender {
		tend := &tender{Cache: c, ctx: t.Context(), pace: pacer{rate: 1 << 30}, seals: true}
		tend.sealNew()
		return tend
	}
	for _, x := range []struct {
		err  error
		goes bool // on trying
	}{{nil, true}, {unix.EEXIST, true}, {unix.ETXTBSY, true}, {unix.EOPNOTSUPP, false}, {unix.ENOTTY, false}} {
		sealed, result = nil, x.err
		if tend := sealAll(c); tend.seals != x.goes || len(sealed) != 1 || !bytes.Equal(sealed[0], data) {
			t.Errorf("%v: %d sealed, goes on %v", x.err, len(sealed), tend.seals)
		}
	}
	// For real, whatever this kernel and file system can.
	c.opts.seal = kernel.Seal
	sealAll(c)
	mustBe(t, c, k, data)
}
