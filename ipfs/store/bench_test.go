package store

import (
	"crypto/sha256"
	"encoding/binary"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store/pack"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store/pins"
)

// BenchmarkEvict opens a store of 100,000 blocks (or STORE_BENCH_BLOCKS), pins
// a tenth and evicts a tenth. It reports how long opening and evicting took,
// and how much the heap grew at most while evicting. The blocks hold 16 bytes: nothing
// looks at their contents.
func BenchmarkEvict(b *testing.B) {
	n := 100_000
	if s := os.Getenv("STORE_BENCH_BLOCKS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			b.Fatal(err)
		}
	}
	dir := b.TempDir()
	keys := plant(b, dir, n)
	root, err := cid.NewPrefixV1(cid.Raw, multihash.SHA2_256).Sum([]byte("root"))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		begin := time.Now()
		s, err := Open(dir, Options{}, slog.New(slog.DiscardHandler))
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(begin).Seconds(), "s/open")
		if err := s.pins.Write(pins.Pin{Root: root, Parts: []cid.Cid{root}}, keys[:n/10]); err != nil {
			b.Fatal(err)
		}
		grown := heapGrowth()
		begin = time.Now()
		freed, err := s.Collect(b.Context(), s.Stat().Bytes*9/10, nil)
		if err != nil || freed.Blocks == 0 {
			b.Fatal(freed, err)
		}
		b.ReportMetric(time.Since(begin).Seconds(), "s/evict")
		b.ReportMetric(float64(freed.Blocks), "evicted")
		b.ReportMetric(grown(), "MB-heap")
		s.Close()
	}
}

// heapGrowth watches the heap until its result is called, which tells by how
// many MB it grew at most, garbage included.
func heapGrowth() (stop func() float64) {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before, most := m.HeapAlloc, m.HeapAlloc
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-over:
				return
			case <-time.After(5 * time.Millisecond):
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapAlloc)
			}
		}
	}()
	return func() float64 {
		close(over)
		<-done
		return float64(most-before) / 1e6
	}
}

// plant stores n blocks of 16 bytes, which are not what their CIDs say, and
// returns their keys.
func plant(b *testing.B, dir string, n int) []uint64 {
	b.Helper()
	p, err := pack.Open(filepath.Join(dir, "blocks"), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	keys := make([]uint64, n)
	for i := range keys {
		sum := sha256.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(i)))
		h, err := multihash.Encode(sum[:], multihash.SHA2_256)
		if err != nil {
			b.Fatal(err)
		}
		keys[i] = pack.Key(h)
		if _, err := p.Add(h, sum[:16], time.Now()); err != nil {
			b.Fatal(err)
		}
	}
	if err := p.Close(); err != nil {
		b.Fatal(err)
	}
	return keys
}
