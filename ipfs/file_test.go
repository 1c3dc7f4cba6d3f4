package ipfs_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	chunker "github.com/ipfs/boxo/chunker"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	"github.com/ipfs/boxo/ipld/unixfs/importer/trickle"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/multiformats/go-multihash"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
)

// A File is a source of a layer's bytes (fs/layer.Source).
var _ interface {
	Size() int64
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
} = (*ipfs.File)(nil)

// dagService lets boxo's builders write into a Memory.
type dagService struct {
	ipld.DAGService // of which the builders use Add alone
	m               *blockstest.Memory
}

func (d dagService) Add(ctx context.Context, n ipld.Node) error { return d.m.Put(ctx, n) }

// shape is one way to cut a file, as other tools may do it.
type shape struct {
	name      string
	chunk     int64
	links     int
	rawLeaves bool
	trickle   bool
	v0        bool
}

var shapes = []shape{
	{name: "kubo v1", chunk: 256 << 10, links: 174, rawLeaves: true},
	{name: "kubo v0, dag-pb leaves", chunk: 256 << 10, links: 174, v0: true},
	{name: "unixfs-v1-2025", chunk: 1 << 20, links: 1024, rawLeaves: true},
	{name: "deep, raw leaves", chunk: 1 << 10, links: 3, rawLeaves: true},
	{name: "deep, dag-pb leaves", chunk: 1 << 10, links: 3},
	{name: "trickle, raw leaves", chunk: 1 << 10, links: 10, rawLeaves: true, trickle: true},
	{name: "trickle, dag-pb leaves", chunk: 1 << 10, links: 10, trickle: true},
	{name: "tiny dag-pb leaves", chunk: 7, links: 174},
}

func (s shape) build(t testing.TB, m *blockstest.Memory, data []byte) cid.Cid {
	t.Helper()
	params := helpers.DagBuilderParams{
		Dagserv: dagService{m: m}, RawLeaves: s.rawLeaves, Maxlinks: s.links,
		CidBuilder: cid.V1Builder{Codec: cid.DagProtobuf, MhType: multihash.SHA2_256},
	}
	if s.v0 {
		params.CidBuilder = cid.V0Builder{}
	}
	b, err := params.New(chunker.NewSizeSplitter(bytes.NewReader(data), s.chunk))
	if err != nil {
		t.Fatal(err)
	}
	layout := balanced.Layout
	if s.trickle {
		layout = trickle.Layout
	}
	root, err := layout(b)
	if err != nil {
		t.Fatal(err)
	}
	return root.Cid()
}

func TestFileShapes(t *testing.T) {
	for _, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			chunk := int(s.chunk)
			sizes := []int{0, 1, chunk, chunk + 1, 5*chunk + 5}
			if chunk <= 1<<10 { // more levels than one
				sizes = append(sizes, chunk*s.links, chunk*s.links+1, 90*chunk+1)
			}
			for _, size := range sizes {
				data := blockstest.Random(t, uint64(size), size).RawData()
				m := blockstest.NewMemory()
				root := s.build(t, m, data)
				f, err := ipfs.OpenFile(t.Context(), m, t.TempDir(), root, int64(size))
				if err != nil {
					t.Fatalf("%d bytes: %v", size, err)
				}
				checkFile(t, f, data)
			}
		})
	}
}

// checkFile compares a file with its bytes: whole, by leaf, at 200 random
// ranges, and around the end.
func checkFile(t *testing.T, f *ipfs.File, data []byte) {
	t.Helper()
	if f.Size() != int64(len(data)) {
		t.Fatalf("Size %d, want %d", f.Size(), len(data))
	}
	var off int64
	n := 0
	for l := range f.Leaves() {
		if l.Offset != off || l.Size <= 0 {
			t.Fatalf("leaf %d at %d of %d bytes, want it at %d", n, l.Offset, l.Size, off)
		}
		off += l.Size
		n++
	}
	if off != f.Size() || n != f.NumLeaves() {
		t.Fatalf("leaves end at %d of %d, %d of %d", off, f.Size(), n, f.NumLeaves())
	}
	read := func(off int64, n int) {
		t.Helper()
		p := make([]byte, n)
		got, err := f.ReadAt(t.Context(), p, off)
		want := data[min(off, int64(len(data))):]
		want = want[:min(n, len(want))]
		var wantErr error
		if len(want) < n {
			wantErr = io.EOF
		}
		if got != len(want) || err != wantErr || !bytes.Equal(p[:got], want) {
			t.Fatalf("ReadAt(%d bytes, %d) = %d, %v; want %d, %v", n, off, got, err, len(want), wantErr)
		}
	}
	read(0, len(data))
	read(0, len(data)+1)
	read(int64(len(data)), 1)
	read(int64(len(data)), 0)
	copied := func(off, n int64) {
		t.Helper()
		var got bytes.Buffer
		err := f.Copy(t.Context(), &got, off, n)
		want := data[min(off, int64(len(data))):]
		var wantErr error
		if int64(len(want)) < n {
			wantErr = io.EOF
		}
		if want = want[:min(n, int64(len(want)))]; err != wantErr || !bytes.Equal(got.Bytes(), want) {
			t.Fatalf("Copy(%d, %d): %d bytes, %v; want %d, %v", off, n, got.Len(), err, len(want), wantErr)
		}
	}
	copied(0, int64(len(data)))
	copied(0, int64(len(data))+1)
	copied(int64(len(data)), 0)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 200 {
		off := rnd.Int64N(f.Size() + 1)
		n := rnd.Int64N(f.Size() - off + 10)
		read(off, int(n))
		if i%10 == 0 {
			copied(off, n)
		}
	}
	if _, err := f.ReadAt(t.Context(), make([]byte, 1), -1); err == nil {
		t.Error("a negative offset is accepted")
	}
}

// A read costs one Get of exactly the leaves that cover the range.
func TestFileReadsExactLeaves(t *testing.T) {
	const leaf = 256 << 10
	m := blockstest.NewMemory()
	data := blockstest.Random(t, 1, 180*leaf).RawData()
	root, size, err := importer.File(t.Context(), bytes.NewReader(data), m.Put)
	if err != nil {
		t.Fatal(err)
	}
	f, err := ipfs.OpenFile(t.Context(), m, "", root, size)
	if err != nil {
		t.Fatal(err)
	}
	if gets, served := m.Counts(); gets != 2 || served != 1+2 { // the root; two nodes below it
		t.Errorf("opening took %d Gets of %d blocks, want 2 of 3", gets, served)
	}
	for _, tt := range []struct{ off, n, leaves int }{
		{0, 1, 1},
		{leaf - 1, 1, 1},
		{leaf - 1, 2, 2},
		{leaf, leaf, 1},
		{5*leaf + 3, 100 * leaf, 101},
	} {
		gets, served := m.Counts()
		if _, err := f.ReadAt(t.Context(), make([]byte, tt.n), int64(tt.off)); err != nil {
			t.Fatal(err)
		}
		g, s := m.Counts()
		if g-gets != 1 || s-served != tt.leaves {
			t.Errorf("%d bytes at %d: %d Gets of %d leaves, want 1 of %d", tt.n, tt.off, g-gets, s-served, tt.leaves)
		}
	}
}

// Opening a file of dag-pb leaves must not fetch the leaves.
func TestFileOpenLeavesLeavesAlone(t *testing.T) {
	m := blockstest.NewMemory()
	root := shape{chunk: 256 << 10, links: 174, v0: true}.build(t, m, blockstest.Random(t, 1, 100*256<<10).RawData())
	if _, err := ipfs.OpenFile(t.Context(), m, "", root, 1<<30); err != nil {
		t.Fatal(err)
	}
	if _, served := m.Counts(); served != 1 {
		t.Errorf("opening fetched %d blocks, want the root alone", served)
	}
}

// The same leaf may stand in many places.
func TestFileRepeatedLeaf(t *testing.T) {
	m := blockstest.NewMemory()
	data := make([]byte, 50*256<<10)
	root, size, err := importer.File(t.Context(), bytes.NewReader(data), m.Put)
	if err != nil {
		t.Fatal(err)
	}
	f, err := ipfs.OpenFile(t.Context(), m, t.TempDir(), root, size)
	if err != nil {
		t.Fatal(err)
	}
	checkFile(t, f, data)
}

func TestFileTableOnDisk(t *testing.T) {
	m := blockstest.NewMemory()
	data := blockstest.Random(t, 1, 10*256<<10+5).RawData()
	root, size, err := importer.File(t.Context(), bytes.NewReader(data), m.Put)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "tables")
	open := func() (*ipfs.File, int) {
		t.Helper()
		_, before := m.Counts()
		f, err := ipfs.OpenFile(t.Context(), m, dir, root, size)
		if err != nil || f.SaveError() != nil {
			t.Fatal(err, f.SaveError())
		}
		_, after := m.Counts()
		return f, after - before
	}
	if _, fetched := open(); fetched != 1 {
		t.Errorf("first open fetched %d blocks, want the root", fetched)
	}
	f, fetched := open()
	if fetched != 0 {
		t.Errorf("second open fetched %d blocks, want 0", fetched)
	}
	checkFile(t, f, data)
	path := filepath.Join(dir, root.String()+".leaves")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		damage func(b []byte) []byte
	}{
		{"empty", func([]byte) []byte { return nil }},
		{"cut", func(b []byte) []byte { return b[:len(b)-1] }},
		{"longer", func(b []byte) []byte { return append(b, 0) }},
		{"flipped bit", func(b []byte) []byte { b[30] ^= 1; return b }},
		{"other version", func(b []byte) []byte { b[7]++; return b }},
		{"count", func(b []byte) []byte { b[11] = 0xff; return b }},
	} {
		if err := os.WriteFile(path, tt.damage(bytes.Clone(whole)), 0o600); err != nil {
			t.Fatal(err)
		}
		if f, fetched := open(); fetched != 1 {
			t.Errorf("%s: fetched %d blocks, want the root", tt.name, fetched)
		} else {
			checkFile(t, f, data)
		}
		if again, err := os.ReadFile(path); err != nil || !bytes.Equal(again, whole) {
			t.Errorf("%s: the table was not made again (%v)", tt.name, err)
		}
	}
	if names, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(names) > 0 {
		t.Errorf("left behind: %v %v", names, err)
	}
	// The limit holds for a table that is there, too.
	if _, err := ipfs.OpenFile(t.Context(), m, dir, root, size-1); !errors.Is(err, ipfs.ErrTooLarge) {
		t.Errorf("over the limit: %v, want ErrTooLarge", err)
	}
}

// A table that cannot be kept is no reason to fail.
func TestFileTableNotSaved(t *testing.T) {
	m := blockstest.NewMemory()
	data := blockstest.Random(t, 1, 3*256<<10).RawData()
	root, size, err := importer.File(t.Context(), bytes.NewReader(data), m.Put)
	if err != nil {
		t.Fatal(err)
	}
	f, err := ipfs.OpenFile(t.Context(), m, "/proc/nowhere", root, size)
	if err != nil || f.SaveError() == nil {
		t.Fatalf("OpenFile: %v, SaveError %v", err, f.SaveError())
	}
	checkFile(t, f, data)
}

func TestFileUnavailable(t *testing.T) {
	m := blockstest.NewMemory()
	root, size, err := importer.File(t.Context(), bytes.NewReader(make([]byte, 300<<10)), m.Put)
	if err != nil {
		t.Fatal(err)
	}
	f, err := ipfs.OpenFile(t.Context(), m, "", root, size)
	if err != nil {
		t.Fatal(err)
	}
	for l := range f.Leaves() {
		m.Delete(l.CID)
	}
	var u *ipfs.UnavailableError
	if n, err := f.ReadAt(t.Context(), make([]byte, 300<<10), 0); n != 0 || !errors.As(err, &u) || len(u.CIDs) != 2 {
		t.Errorf("ReadAt: %d, %v, want an UnavailableError with both leaves", n, err)
	}
	m.Delete(root)
	if _, err := ipfs.OpenFile(t.Context(), m, "", root, size); !errors.As(err, &u) {
		t.Errorf("OpenFile: %v, want an UnavailableError", err)
	}
}

func BenchmarkFileReadAt(b *testing.B) {
	m := blockstest.NewMemory()
	root, size, err := importer.File(b.Context(), bytes.NewReader(make([]byte, 256<<20)), m.Put)
	if err != nil {
		b.Fatal(err)
	}
	f, err := ipfs.OpenFile(b.Context(), m, "", root, size)
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 4<<10)
	rnd := rand.New(rand.NewPCG(1, 2))
	for b.Loop() {
		if _, err := f.ReadAt(b.Context(), p, rnd.Int64N(size-int64(len(p)))); err != nil {
			b.Fatal(err)
		}
	}
}
