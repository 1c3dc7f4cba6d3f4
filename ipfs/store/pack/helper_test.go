package pack

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
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
