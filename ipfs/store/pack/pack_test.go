package pack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/multiformats/go-multihash"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var begin = time.Unix(1_700_000_000, 0)

// value is n bytes that depend on i, and their hash.
func value(t testing.TB, i uint64, n int) (multihash.Multihash, []byte) {
	t.Helper()
	data := make([]byte, n)
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], i)
	if _, err := rand.NewChaCha8(seed).Read(data); err != nil {
		t.Fatal(err)
	}
	h, err := multihash.Sum(data, multihash.SHA2_256, -1)
	if err != nil {
		t.Fatal(err)
	}
	return h, data
}

// small is how long the packs of tests are.
const small = 256 << 10

func open(t testing.TB, dir string) *Packs {
	t.Helper()
	p, err := Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	p.full = small
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func reopen(t testing.TB, p *Packs) *Packs {
	t.Helper()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, p.dir)
}

func add(t testing.TB, p *Packs, i uint64, n int, used time.Time) multihash.Multihash {
	t.Helper()
	h, data := value(t, i, n)
	if _, err := p.Add(h, data, used); err != nil {
		t.Fatal(err)
	}
	return h
}

// model is what packs should hold.
type model map[string]struct {
	data []byte
	used time.Time
}

// check holds packs against the model, each way of asking for itself.
func (m model) check(t testing.TB, p *Packs) {
	t.Helper()
	var want int64
	for h, v := range m {
		want += int64(len(v.data))
		data, used, err := p.Read(multihash.Multihash(h), nil)
		if err != nil || !bytes.Equal(data, v.data) || !used.Equal(v.used) {
			t.Fatalf("%x: %d bytes of %d, used %v, want %v: %v", h, len(data), len(v.data), used, v.used, err)
		}
		size, used, ok := p.Size(multihash.Multihash(h))
		if !ok || size != int64(len(v.data)) || !used.Equal(v.used) {
			t.Fatalf("%x: size %d, used %v, %v", h, size, used, ok)
		}
	}
	all := map[string]int64{}
	if err := p.All(t.Context(), func(e Entry) error {
		all[string(e.Hash)] += e.Size
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for h := range all {
		if _, ok := m[h]; !ok {
			t.Fatalf("%x is listed", h)
		}
	}
	if n, bytes := p.Len(); n != len(m) || len(all) != len(m) || bytes != want {
		t.Fatalf("%d values of %d bytes, %d listed; want %d of %d", n, bytes, len(all), len(m), want)
	}
	p.Each(func(_ uint64, size int64, _ uint32) { want -= size })
	if want != 0 {
		t.Fatalf("%d bytes were passed over", want)
	}
}

// disk is how many bytes of the file system the values take.
func disk(t testing.TB, p *Packs) (n int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(p.dir, "*"+dataSuffix))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		n += allocated(info)
	}
	return n
}

// Whatever is done in whatever order, the packs hold what a map would, also
// when they are opened again, and take no more of the disk than that.
func TestRandom(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			p, m := open(t, t.TempDir()), model{}
			now := begin
			for range 1500 {
				now = now.Add(time.Second)
				i := r.Uint64N(200)
				h, data := value(t, i, int(1+i*97%20_000))
				v, held := m[string(h)]
				switch op := r.IntN(100); {
				case op < 50:
					n, err := p.Add(h, data, now)
					if err != nil || n != int64(len(v.data)) {
						t.Fatalf("Add: replaced %d, %v", n, err)
					}
					v.data, v.used = data, now
					m[string(h)] = v
				case op < 70:
					if p.Use(h, now) != held {
						t.Fatal("Use")
					}
					if held {
						v.used = now
						m[string(h)] = v
					}
				case op < 90:
					n, err := p.Remove(h)
					if err != nil || n != int64(len(v.data)) {
						t.Fatalf("Remove: %d, %v", n, err)
					}
					delete(m, string(h))
				case op < 93:
					before := second(now.Add(-100 * time.Second))
					gone := 0
					if err := p.Sweep(t.Context(), func(_ uint64, _ int64, used uint32) bool { return used < before }, func(e Entry) {
						if v := m[string(e.Hash)]; !v.used.Equal(e.Used) || int64(len(v.data)) != e.Size {
							t.Fatalf("swept %+v, want %v", e, v.used)
						}
						delete(m, string(e.Hash))
						gone++
					}); err != nil {
						t.Fatal(err)
					}
					for _, v := range m {
						if second(v.used) < before {
							t.Fatal("not swept")
						}
					}
				case op < 97:
					if err := p.Tidy(t.Context()); err != nil {
						t.Fatal(err)
					}
				default:
					p = reopen(t, p)
				}
			}
			m.check(t, p)
			p = reopen(t, p)
			m.check(t, p)
			if err := p.Tidy(t.Context()); err != nil {
				t.Fatal(err)
			}
			m.check(t, p)
			var pages int64
			for _, v := range m {
				pages += slot{size: uint32(len(v.data))}.pages() * page
			}
			// A file system may take a few blocks of its own for the map of a file.
			if got := disk(t, p); got > pages+int64(len(p.packs))*8*page {
				t.Errorf("%d bytes of disk for %d in %d packs", got, pages, len(p.packs))
			}
		})
	}
}

// A pack of which little is left is dissolved, one of which nothing is left
// goes at once; no file stays open.
func TestSparsePacksGo(t *testing.T) {
	p := open(t, t.TempDir())
	m := model{}
	for i := range uint64(320) { // 20 packs
		h, data := value(t, i, 16<<10)
		if _, err := p.Add(h, data, begin.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
		if i%16 == 3 && i/16%2 == 0 { // one of sixteen in every other pack stays
			v := m[string(h)]
			v.data, v.used = data, begin.Add(time.Duration(i)*time.Second)
			m[string(h)] = v
		}
	}
	if len(p.packs) != 20 {
		t.Fatalf("%d packs", len(p.packs))
	}
	kept := map[uint64]bool{}
	for h := range m {
		kept[Key(multihash.Multihash(h))] = true
	}
	if err := p.Sweep(t.Context(), func(key uint64, _ int64, _ uint32) bool { return !kept[key] }, func(Entry) {}); err != nil {
		t.Fatal(err)
	}
	if len(p.packs) != 11 { // the last one is appended to
		t.Errorf("%d packs after the sweep", len(p.packs))
	}
	if err := p.Tidy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(p.packs) > 2 {
		t.Errorf("%d packs after tidying", len(p.packs))
	}
	m.check(t, p)
	m.check(t, reopen(t, p))
	if files, err := os.ReadDir(p.dir); err != nil || len(files) > 4 {
		t.Errorf("%d files, %v", len(files), err)
	}
}

// What a power cut can leave: entries without bytes, bytes without entries,
// entries that were half written, and one file of two. What is whole is found,
// nothing else is, and new values do not get in the way of old ones.
func TestPowerCut(t *testing.T) {
	const n, size = 10, 5000
	for name, tt := range map[string]struct {
		cut  func(data, index string) error
		left int
	}{
		"data cut":       {func(d, _ string) error { return os.Truncate(d, 4*2*page) }, 4},
		"data empty":     {func(d, _ string) error { return os.Truncate(d, 0) }, 0},
		"index cut":      {func(_, i string) error { return os.Truncate(i, entryOffset(4)+50) }, 4},
		"index empty":    {func(_, i string) error { return os.Truncate(i, 0) }, 0},
		"times cut":      {func(_, i string) error { return os.Truncate(i, 10) }, 0},
		"index zeros":    {func(_, i string) error { return zeros(i, entryOffset(2), 3*entrySize) }, 7},
		"entry half":     {func(_, i string) error { return zeros(i, entryOffset(2)+20, 30) }, 9},
		"index missing":  {func(_, i string) error { return os.Remove(i) }, 0},
		"data missing":   {func(d, _ string) error { return os.Remove(d) }, 0},
		"half an append": {func(d, _ string) error { return os.Truncate(d, n*2*page+100) }, n},
	} {
		t.Run(name, func(t *testing.T) {
			p := open(t, t.TempDir())
			var hashes []multihash.Multihash
			for i := range uint64(n) {
				hashes = append(hashes, add(t, p, i, size, begin))
			}
			data, index := p.path(0, dataSuffix), p.path(0, indexSuffix)
			if err := errors.Join(p.Close(), tt.cut(data, index)); err != nil {
				t.Fatal(err)
			}
			p = open(t, p.dir)
			m := model{}
			for i, h := range hashes {
				got, used, err := p.Read(h, nil)
				if errors.Is(err, ErrNotHeld) {
					continue
				}
				if _, want := value(t, uint64(i), size); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("%d: %d bytes, %v", i, len(got), err)
				}
				v := m[string(h)]
				v.data, v.used = got, used
				m[string(h)] = v
			}
			if len(m) != tt.left {
				t.Errorf("%d are left, want %d", len(m), tt.left)
			}
			for i := range uint64(n) {
				h, data := value(t, 100+i, size)
				if _, err := p.Add(h, data, begin); err != nil {
					t.Fatal(err)
				}
				v := m[string(h)]
				v.data, v.used = data, begin
				m[string(h)] = v
			}
			m.check(t, p)
			m.check(t, reopen(t, p))
		})
	}
}

// A new value does not get the time of one whose entry a power cut took.
func TestTimesOfLostEntries(t *testing.T) {
	p := open(t, t.TempDir())
	p.Use(add(t, p, 1, 100, begin), begin.Add(time.Hour))
	if err := errors.Join(p.Close(), os.Truncate(p.path(0, indexSuffix), timesSize)); err != nil {
		t.Fatal(err)
	}
	p = open(t, p.dir)
	h := add(t, p, 2, 100, begin)
	if _, used, ok := reopen(t, p).Size(h); !ok || !used.Equal(begin) {
		t.Errorf("%v, used %v, want %v", ok, used, begin)
	}
}

func zeros(path string, off int64, n int) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(make([]byte, n), off)
	return errors.Join(err, f.Close())
}

// A value that was being moved when the process ended is there once.
func TestMovedTwice(t *testing.T) {
	p := open(t, t.TempDir())
	h, data := value(t, 1, 5000)
	if _, err := p.Add(h, data, begin); err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(p.path(0, indexSuffix))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := p.Add(h, data, begin.Add(time.Hour)); n != 5000 || err != nil {
		t.Fatal(n, err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadFile(p.path(0, indexSuffix))
	if err != nil {
		t.Fatal(err)
	}
	copy(now[timesSize:], old[timesSize:]) // the first entry again
	if err := os.WriteFile(p.path(0, indexSuffix), now, 0o600); err != nil {
		t.Fatal(err)
	}
	m := model{string(h): {data, begin.Add(time.Hour)}}
	m.check(t, open(t, p.dir))
}

// Times of last use that were written stay, those of before too.
func TestTimes(t *testing.T) {
	p := open(t, t.TempDir())
	a, b := add(t, p, 1, 100, begin), add(t, p, 2, 100, begin.Add(time.Hour))
	p.Use(a, begin.Add(2*time.Hour))
	if err := p.Save(); err != nil {
		t.Fatal(err)
	}
	c := add(t, p, 3, 100, begin.Add(3*time.Hour))
	q := open(t, p.dir) // as after a crash
	for h, want := range map[string]time.Time{
		string(a): begin.Add(2 * time.Hour), string(b): begin.Add(time.Hour), string(c): begin.Add(3 * time.Hour),
	} {
		if _, used, ok := q.Size(multihash.Multihash(h)); !ok || !used.Equal(want) {
			t.Errorf("used %v, want %v", used, want)
		}
	}
}

// More packs than may be open are read all the same.
func TestManyPacks(t *testing.T) {
	p := open(t, t.TempDir())
	p.full = page
	m := model{}
	for i := range uint64(3 * maxOpen) {
		h, data := value(t, i, 100)
		if _, err := p.Add(h, data, begin); err != nil {
			t.Fatal(err)
		}
		v := m[string(h)]
		v.data, v.used = data, begin
		m[string(h)] = v
	}
	m.check(t, p)
	if len(p.open) > maxOpen {
		t.Errorf("%d are open", len(p.open))
	}
	p = reopen(t, p)
	m.check(t, p)
}

// Readers, writers, removers and tidying at once: what is read is right.
func TestConcurrent(t *testing.T) {
	p := open(t, t.TempDir())
	p.full = 16 * page
	type kv struct {
		h    multihash.Multihash
		data []byte
	}
	values := make([]kv, 300)
	for i := range values {
		values[i].h, values[i].data = value(t, uint64(i), 3000)
	}
	stop := make(chan struct{})
	var work, tidy sync.WaitGroup
	for w := range uint64(4) {
		work.Go(func() {
			r := rand.New(rand.NewPCG(w, 2))
			for range 3000 {
				v := values[r.IntN(len(values))]
				switch r.IntN(4) {
				case 0:
					if _, err := p.Add(v.h, v.data, begin); err != nil {
						t.Error(err)
					}
				case 1:
					if _, err := p.Remove(v.h); err != nil {
						t.Error(err)
					}
				default:
					got, _, err := p.Read(v.h, nil)
					if err != nil && !errors.Is(err, ErrNotHeld) {
						t.Error(err)
					}
					// A value that goes while it is read may read as zeros.
					if err == nil && !bytes.Equal(got, v.data) && bytes.Count(got, []byte{0}) < 1000 {
						if _, _, ok := p.Size(v.h); ok {
							t.Error("wrong bytes")
						}
					}
				}
			}
		})
	}
	tidy.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := errors.Join(p.Tidy(t.Context()), p.Save()); err != nil {
				t.Error(err)
			}
		}
	})
	work.Wait()
	close(stop)
	tidy.Wait()
	m := model{}
	for _, v := range values {
		if got, used, err := p.Read(v.h, nil); err == nil {
			if !bytes.Equal(got, v.data) {
				t.Error("wrong bytes in the end")
			}
			e := m[string(v.h)]
			e.data, e.used = got, used
			m[string(v.h)] = e
		}
	}
	m.check(t, p)
	m.check(t, reopen(t, p))
}

// What cannot be a value is refused; what is no pack of ours is left alone.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"README", "zz.data", "1.index", "000000001.data"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := open(t, dir)
	h, data := value(t, 1, 10)
	for _, bad := range []struct {
		h    multihash.Multihash
		data []byte
	}{{h, nil}, {nil, data}, {make([]byte, maxHash+1), data}, {h, make([]byte, MaxValue+1)}} {
		if _, err := p.Add(bad.h, bad.data, begin); err == nil {
			t.Errorf("%d bytes of hash, %d of data are taken", len(bad.h), len(bad.data))
		}
	}
	if n, err := p.Remove(h); n != 0 || err != nil {
		t.Error(n, err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 4 {
		t.Errorf("%d files, %v", len(files), err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Add(h, data, begin); !errors.Is(err, os.ErrClosed) {
		t.Errorf("added after Close: %v", err)
	}
	if _, _, err := p.Read(h, nil); !errors.Is(err, ErrNotHeld) {
		t.Errorf("read after Close: %v", err)
	}
}

// Whatever an index holds, what is found lies within the data.
func FuzzIndex(f *testing.F) {
	h, _ := value(f, 1, 100)
	raw := make([]byte, entryOffset(3))
	encode(raw[entryOffset(0):entryOffset(1)], slot{first: 0, size: 100, used: 5}, h)
	encode(raw[entryOffset(1):entryOffset(2)], slot{first: 1 << 31, size: 100, used: 5}, h)
	encode(raw[entryOffset(2):entryOffset(3)], slot{first: 1, size: 1 << 31, used: 5}, h)
	f.Add(raw[timesSize:], uint16(5000), true)
	f.Add([]byte{1, 2, 3}, uint16(0), false)
	f.Fuzz(func(t *testing.T, entries []byte, size uint16, whole bool) {
		if whole { // so that the fuzzer need not find checksums
			for i := 0; i+entrySize <= len(entries); i += entrySize {
				if s, h := entries[i:i+entrySize], multihash.Multihash(nil); s[16] <= maxHash {
					h = append(h, s[17:17+s[16]]...)
					v := slot{first: binary.LittleEndian.Uint32(s[4:]), size: binary.LittleEndian.Uint32(s[8:])}
					clear(s)
					encode(s, v, h)
				}
			}
		}
		dir := t.TempDir()
		index := append(make([]byte, timesSize), entries...)
		if err := errors.Join(os.WriteFile(filepath.Join(dir, "00000000.index"), index, 0o600), os.WriteFile(filepath.Join(dir, "00000000.data"), make([]byte, size), 0o600)); err != nil {
			t.Fatal(err)
		}
		p := open(t, dir)
		if err := p.All(t.Context(), func(e Entry) error {
			_, off, n, ok := p.Where(e.Hash)
			if !ok || off+n > int64(size)+page {
				t.Errorf("%d bytes at %d of %d", n, off, size)
			}
			_, _, err := p.Read(e.Hash, nil)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		add(t, p, 7, 3000, begin)
		before := maps.Clone(p.index)
		if err := p.Tidy(t.Context()); err != nil || !maps.Equal(before, p.index) {
			t.Errorf("tidied: %v", err)
		}
	})
}

// BenchmarkAdd adds values of 64 KiB; a file for each is the reference.
func BenchmarkAdd(b *testing.B) {
	const size = 64 << 10
	h, data := value(b, 1, size)
	b.Run("pack", func(b *testing.B) {
		p, err := Open(b.TempDir(), slog.New(slog.DiscardHandler))
		if err != nil {
			b.Fatal(err)
		}
		defer p.Close()
		b.SetBytes(size)
		for i := 0; b.Loop(); i++ {
			binary.LittleEndian.PutUint64(h[len(h)-8:], uint64(i))
			if _, err := p.Add(h, data, begin); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("file", func(b *testing.B) {
		dir := b.TempDir()
		b.SetBytes(size)
		for i := 0; b.Loop(); i++ {
			f, err := os.CreateTemp(dir, "")
			if err != nil {
				b.Fatal(err)
			}
			_, err = f.Write(data)
			if err := errors.Join(err, f.Close(), os.Rename(f.Name(), filepath.Join(dir, fmt.Sprint(i)))); err != nil {
				b.Fatal(err)
			}
		}
	})
}
