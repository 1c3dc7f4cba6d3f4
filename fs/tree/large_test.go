package tree

import (
	"bytes"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// TestLarge builds an image of 100,000 files, again with one processor, and
// again layer by layer.
func TestLarge(t *testing.T) {
	entries := bigLayer(1000, 100)
	third := len(entries) / 3
	layers := [][]layer.Entry{entries[:third], entries[third : 2*third], entries[2*third:]}
	stats, err := buildImage(t, filepath.Join(t.TempDir(), "image"), layers, Options{}) // and fsck.erofs
	if err != nil {
		t.Fatal(err)
	}
	if stats.Names != 101_003 || stats.Inodes != stats.Names {
		t.Errorf("%d names, %d inodes", stats.Names, stats.Inodes)
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var once, twice memory
	again, err := Build(t.Context(), &once, layers, Options{})
	if err != nil || again != stats {
		t.Errorf("%v, %+v, want %+v", err, again, stats)
	}
	m := NewMerge(false)
	for _, l := range layers {
		if err := m.Add(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	if m.Names() != len(entries) {
		t.Errorf("%d names of %d entries", m.Names(), len(entries))
	}
	if _, err := m.Write(t.Context(), &twice, Options{}); err != nil || !bytes.Equal(once.b, twice.b) {
		t.Errorf("layer by layer: %v, or other bytes", err)
	}
}
