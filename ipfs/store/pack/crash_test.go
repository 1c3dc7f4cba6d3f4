package pack

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/multiformats/go-multihash"
)

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
