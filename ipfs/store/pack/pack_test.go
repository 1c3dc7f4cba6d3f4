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
)

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
