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
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	"github.com/ipfs/boxo/ipld/unixfs/importer/trickle"
	blocks "github.com/ipfs/go-block-format"
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

// put stores a block under its CID.
func put(t testing.TB, m *blockstest.Memory, codec uint64, data []byte) cid.Cid {
	t.Helper()
	c, err := cid.NewPrefixV1(codec, multihash.SHA2_256).Sum(data)
	if err != nil {
		t.Fatal(err)
	}
	b, err := blocks.NewBlockWithCid(data, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Put(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return c
}

// node builds a dag-pb node of a file with boxo's own types.
func node(t testing.TB, m *blockstest.Memory, data []byte, sizes []uint64, tsize uint64, links ...cid.Cid) cid.Cid {
	t.Helper()
	fsn := unixfs.NewFSNode(unixfs.TFile)
	fsn.SetData(data)
	for _, s := range sizes {
		fsn.AddBlockSize(s)
	}
	raw, err := fsn.GetBytes()
	if err != nil {
		t.Fatal(err)
	}
	return pbnode(t, m, raw, tsize, links...)
}

func pbnode(t testing.TB, m *blockstest.Memory, data []byte, tsize uint64, links ...cid.Cid) cid.Cid {
	t.Helper()
	n := merkledag.NodeWithData(data)
	for _, l := range links {
		if err := n.AddRawLink("", &ipld.Link{Cid: l, Size: tsize}); err != nil {
			t.Fatal(err)
		}
	}
	return put(t, m, cid.DagProtobuf, n.RawData())
}

func repeat[T any](v T, n int) []T {
	out := make([]T, n)
	for i := range out {
		out[i] = v
	}
	return out
}

// Data in a node that has children as well comes before theirs.
func TestFileDataInInnerNode(t *testing.T) {
	m := blockstest.NewMemory()
	leaf := put(t, m, cid.Raw, []byte("leaf"))
	inner := node(t, m, []byte("inner"), []uint64{4}, 4, leaf)
	root := node(t, m, []byte("root"), []uint64{9, 0, 4}, 100, inner, leaf, leaf)
	f, err := ipfs.OpenFile(t.Context(), m, "", root, 100)
	if err != nil {
		t.Fatal(err)
	}
	checkFile(t, f, []byte("rootinnerleafleaf"))
}

func TestFileHostile(t *testing.T) {
	const maxSize = 1 << 40
	for _, tt := range []struct {
		name  string
		build func(t *testing.T, m *blockstest.Memory) cid.Cid
		want  error
	}{
		{"directory", func(t *testing.T, m *blockstest.Memory) cid.Cid {
			return pbnode(t, m, unixfs.FolderPBData(), 0)
		}, ipfs.ErrNotFile},
		{"symlink", func(t *testing.T, m *blockstest.Memory) cid.Cid {
			data, err := unixfs.SymlinkData("target")
			if err != nil {
				t.Fatal(err)
			}
			return pbnode(t, m, data, 0)
		}, ipfs.ErrNotFile},
		{"other codec", func(t *testing.T, m *blockstest.Memory) cid.Cid {
			return put(t, m, cid.DagCBOR, []byte{0xa0})
		}, ipfs.ErrNotFile},
		{"no protobuf", func(t *testing.T, m *blockstest.Memory) cid.Cid {
			return put(t, m, cid.DagProtobuf, []byte("no protobuf"))
		}, ipfs.ErrMalformed},
		{"block sizes without links", func(t *testing.T, m *blockstest.Memory) cid.Cid {
			return node(t, m, nil, []uint64{5, 5}, 5, put(t, m, cid.Raw, []byte("hello")))
		}, ipfs.ErrMalformed},
		{"links without block sizes", func(t *testing.T, m *blockstest.Memory) cid.Cid {
			leaf := put(t, m, cid.Raw, []byte("hello"))
			return node(t, m, nil, []uint64{5}, 5, leaf, leaf)
		}, ipfs.ErrMalformed},
		{"sizes overflow", func(t *testing.T, m *blockstest.Memory) cid.Cid {
			leaf := put(t, m, cid.Raw, []byte("hello"))
			return node(t, m, nil, []uint64{1 << 62, 1 << 62}, 5, leaf, leaf)
		}, ipfs.ErrMalformed},
		{"size over 63 bits", func(t *testing.T, m *blockstest.Memory) cid.Cid {
			return node(t, m, nil, []uint64{1 << 63}, 5, put(t, m, cid.Raw, []byte("hello")))
		}, ipfs.ErrMalformed},
		{"larger than allowed", func(t *testing.T, m *blockstest.Memory) cid.Cid {
			inner := put(t, m, cid.DagProtobuf, []byte("never opened"))
			return node(t, m, nil, []uint64{maxSize + 1}, 0, inner)
		}, ipfs.ErrTooLarge},
		{"raw leaf larger than a block", func(t *testing.T, m *blockstest.Memory) cid.Cid {
			return node(t, m, nil, []uint64{ipfs.MaxBlockSize + 1}, 5, put(t, m, cid.Raw, []byte("hello")))
		}, ipfs.ErrMalformed},
		{"child holds less than its parent says", func(t *testing.T, m *blockstest.Memory) cid.Cid {
			return node(t, m, nil, []uint64{6}, 0, node(t, m, []byte("hello"), nil, 0))
		}, ipfs.ErrMalformed},
		{"too deep", func(t *testing.T, m *blockstest.Memory) cid.Cid {
			c := put(t, m, cid.Raw, []byte("hello"))
			for range 20 {
				c = node(t, m, nil, []uint64{5}, 0, c)
			}
			return c
		}, ipfs.ErrMalformed},
		{"blow-up by sharing", func(t *testing.T, m *blockstest.Memory) cid.Cid {
			c, size := put(t, m, cid.Raw, []byte("x")), uint64(1)
			for range 3 { // 4096³ leaves in four blocks
				c = node(t, m, nil, repeat(size, 4096), 0, repeat(c, 4096)...)
				size *= 4096
			}
			return c
		}, ipfs.ErrMalformed},
		{"link to a CID that cannot be verified", func(t *testing.T, m *blockstest.Memory) cid.Cid {
			weak, err := cid.NewPrefixV1(cid.Raw, multihash.MD5).Sum([]byte("hello"))
			if err != nil {
				t.Fatal(err)
			}
			return node(t, m, nil, []uint64{5}, 5, weak)
		}, ipfs.ErrMalformed},
		{"child of another codec", func(t *testing.T, m *blockstest.Memory) cid.Cid {
			return node(t, m, nil, []uint64{1}, 0, put(t, m, cid.DagCBOR, []byte{0xa0}))
		}, ipfs.ErrNotFile},
		{"undefined root", func(*testing.T, *blockstest.Memory) cid.Cid { return cid.Undef }, ipfs.ErrBadCID},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := blockstest.NewMemory()
			dir := t.TempDir()
			_, err := ipfs.OpenFile(t.Context(), m, dir, tt.build(t, m), maxSize)
			if !errors.Is(err, tt.want) {
				t.Errorf("OpenFile: %v, want %v", err, tt.want)
			}
			if names, err := os.ReadDir(dir); err != nil || len(names) > 0 {
				t.Errorf("something was written: %v %v", names, err)
			}
		})
	}
}

// Leaves that lie about their length are found when they are read.
func TestFileHostileLeaves(t *testing.T) {
	m := blockstest.NewMemory()
	short := put(t, m, cid.Raw, []byte("hell"))
	inner := node(t, m, nil, []uint64{4}, 4, short) // says by its tsize that it is a leaf
	for name, root := range map[string]cid.Cid{
		"shorter raw leaf":     node(t, m, nil, []uint64{5}, 5, short),
		"inner node as a leaf": node(t, m, nil, []uint64{4}, 10, inner),
	} {
		f, err := ipfs.OpenFile(t.Context(), m, "", root, 100)
		if err != nil {
			t.Errorf("%s: OpenFile: %v", name, err)
			continue
		}
		if n, err := f.ReadAt(t.Context(), make([]byte, 3), 0); n != 0 || !errors.Is(err, ipfs.ErrMalformed) {
			t.Errorf("%s: ReadAt: %d, %v, want ErrMalformed", name, n, err)
		}
	}
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

// Copy ends with the first error, of the blocks or of the writer, and writes
// nothing after it.
func TestCopyErrors(t *testing.T) {
	m := blockstest.NewMemory()
	data := blockstest.Random(t, 1, 40<<20).RawData()
	root, size, err := importer.File(t.Context(), bytes.NewReader(data), m.Put)
	if err != nil {
		t.Fatal(err)
	}
	f, err := ipfs.OpenFile(t.Context(), m, "", root, size)
	if err != nil {
		t.Fatal(err)
	}
	mine := errors.New("mine")
	w := &failing{left: 9 << 20, err: mine}
	if err := f.Copy(t.Context(), w, 0, size); err != mine || w.after {
		t.Errorf("Copy: %v, want the writer's; written after it: %v", err, w.after)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Copy(ctx, io.Discard, 0, size); !errors.Is(err, context.Canceled) {
		t.Errorf("Copy: %v, want context.Canceled", err)
	}
	var leaves []cid.Cid
	for l := range f.Leaves() {
		leaves = append(leaves, l.CID)
	}
	m.Delete(leaves[len(leaves)-1])
	var got bytes.Buffer
	var missing *ipfs.UnavailableError
	if err := f.Copy(t.Context(), &got, 0, size); !errors.As(err, &missing) || !bytes.HasPrefix(data, got.Bytes()) {
		t.Errorf("Copy: %v after %d bytes, want an UnavailableError", err, got.Len())
	}
}

// failing is a writer that takes some bytes, and then fails.
type failing struct {
	left  int
	err   error
	after bool
	done  bool
}

func (w *failing) Write(p []byte) (int, error) {
	w.after = w.done
	if w.left -= len(p); w.left < 0 {
		w.done = true
		return 0, w.err
	}
	return len(p), nil
}
