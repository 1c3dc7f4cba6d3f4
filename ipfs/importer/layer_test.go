package importer_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/iotest"

	mdtest "github.com/ipfs/boxo/ipld/merkledag/test"
	uio "github.com/ipfs/boxo/ipld/unixfs/io"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
)

// part is what lies between two cuts.
type part struct {
	data []byte
	must bool // cut behind it
}

// parts are n of them, of a few bytes to size, mostly small as files are.
func parts(seed uint64, n, size int) []part {
	r := rand.New(rand.NewPCG(seed, 1))
	out := make([]part, n)
	for i := range out {
		data := make([]byte, 1+r.IntN(1+r.IntN(size)))
		for j := range data {
			data[j] = byte(r.Uint32())
		}
		out[i].data = data
	}
	return out
}

func join(ps []part) (data []byte, cuts []importer.Cut) {
	for _, p := range ps {
		data = append(data, p.data...)
		cuts = append(cuts, importer.Cut{Offset: int64(len(data)), Must: p.must})
	}
	return data, cuts
}

// importParts imports ps and returns the leaves.
func importParts(t testing.TB, ps []part, sizes importer.LeafSizes) []ipfs.Leaf {
	t.Helper()
	data, cuts := join(ps)
	m := blockstest.NewMemory()
	root, size, err := importer.Layer(t.Context(), iotest.HalfReader(bytes.NewReader(data)), cuts, sizes, m.Put)
	if err != nil || size != int64(len(data)) {
		t.Fatalf("%d bytes, %v", size, err)
	}
	return leavesOf(t, m, root, data)
}

// leavesOf reads a file back and returns its leaves.
func leavesOf(t testing.TB, b ipfs.Blocks, root cid.Cid, data []byte) []ipfs.Leaf {
	t.Helper()
	f, err := ipfs.OpenFile(t.Context(), b, "", root, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, f.Size())
	if _, err := f.ReadAt(t.Context(), got, 0); err != nil && len(got) > 0 || !bytes.Equal(got, data) {
		t.Fatalf("read back: %d of %d bytes, %v", len(got), len(data), err)
	}
	return slices.Collect(f.Leaves())
}

func TestImportLayer(t *testing.T) {
	ps := parts(1, 3000, 20_000)
	big := blockstest.Random(t, 2, 2_500_000).RawData()
	ps = slices.Insert(ps, 1000, part{data: big}, part{data: big[:100_000]}, part{data: []byte("between"), must: true}, part{data: big[:100_000]})
	sizes := importer.LeafSizes{Own: 64 << 10, Min: 16 << 10, Target: 64 << 10, Max: 256 << 10}
	leaves := importParts(t, ps, sizes)
	_, cuts := join(ps)
	at := map[int64]bool{0: true}
	for _, c := range cuts {
		at[c.Offset] = true
	}
	var shared, sharedBytes int64
	sizesOf := map[int64]int64{}
	for _, l := range leaves {
		sizesOf[l.Offset] = l.Size
		if l.Size > importer.MaxLeafSize {
			t.Errorf("a leaf of %d bytes", l.Size)
		}
		if l.Size < int64(sizes.Max) && l.Size != 100_000 {
			shared++
			sharedBytes += l.Size
		}
		if end := l.Offset + l.Size; !at[end] && l.Size != 833_334 && l.Size != 833_333 {
			t.Errorf("a leaf ends at %d, between two cuts", end)
		}
	}
	if mean := sharedBytes / shared; mean < int64(sizes.Target)/2 || mean > int64(sizes.Target)*3/2 {
		t.Errorf("leaves that parts share have %d bytes on average", mean)
	}
	// The large ones, and what was to be cut from them.
	begin := cuts[999].Offset
	for _, want := range []int64{833_334, 833_333, 833_333, 100_000, 7, 100_000} {
		if got := sizesOf[begin]; got != want {
			t.Errorf("at %d a leaf of %d bytes, want %d", begin, got, want)
		}
		begin += want
	}
}

// TestImportLayerIsLocal changes a file at several places: all leaves but some
// near the change stay.
func TestImportLayerIsLocal(t *testing.T) {
	before := parts(3, 4000, 12_000)
	sizes := importer.LeafSizes{Own: 64 << 10, Min: 16 << 10, Target: 64 << 10, Max: 256 << 10}
	was := map[cid.Cid]bool{}
	for _, l := range importParts(t, before, sizes) {
		was[l.CID] = true
	}
	some := parts(4, 3, 5000)
	for name, after := range map[string][]part{
		"inserted first":  slices.Concat(some[:1], before),
		"inserted":        slices.Insert(slices.Clone(before), 2000, some...),
		"removed":         slices.Delete(slices.Clone(before), 2000, 2010),
		"replaced":        slices.Replace(slices.Clone(before), 1000, 1001, some[2]),
		"first removed":   before[1:],
		"last is another": slices.Concat(before[:len(before)-1], some[1:2]),
		"large inserted":  slices.Insert(slices.Clone(before), 3000, part{data: make([]byte, 3<<20)}),
	} {
		all, others := 0, 0
		for _, l := range importParts(t, after, sizes) {
			all++
			if !was[l.CID] {
				others++
			}
		}
		if others > 8 || all < 100 {
			t.Errorf("%s: %d of %d leaves are others", name, others, all)
		}
	}
}

// TestImportLayerWide has more leaves than fit below one node.
func TestImportLayerWide(t *testing.T) {
	const links = 16 << 10
	for n, inner := range map[int]int{links: 1, links + 1: 3} {
		data := make([]byte, n)
		cuts := make([]importer.Cut, n)
		for i := range cuts {
			cuts[i] = importer.Cut{Offset: int64(i) + 1}
		}
		m := blockstest.NewMemory()
		nodes, largest := 0, 0
		put := func(ctx context.Context, b blocks.Block) error {
			if b.Cid().Type() == cid.DagProtobuf {
				nodes++
				largest = max(largest, len(b.RawData()))
			}
			return m.Put(ctx, b)
		}
		root, _, err := importer.Layer(t.Context(), bytes.NewReader(data), cuts, importer.LeafSizes{Own: 1, Target: 1, Max: 1}, put)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(leavesOf(t, m, root, data)); got != n || nodes != inner {
			t.Errorf("%d leaves and %d nodes, want %d and %d", got, nodes, n, inner)
		}
		// The two sizes of a leaf of a byte have a byte each, those of 1 MiB three.
		if largest+4*links > importer.MaxLeafSize {
			t.Errorf("a node of %d bytes", largest)
		}
	}
}

// TestImportLayerIsUnixFS reads a file of unequal leaves as any IPFS node does.
func TestImportLayerIsUnixFS(t *testing.T) {
	data, cuts := join(parts(5, 500, 100_000))
	dag := mdtest.Mock()
	put := func(ctx context.Context, b blocks.Block) error { return dag.Add(ctx, b.(ipld.Node)) }
	root, _, err := importer.Layer(t.Context(), bytes.NewReader(data), cuts, importer.DefaultLeafSizes(), put)
	if err != nil {
		t.Fatal(err)
	}
	node, err := dag.Get(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	r, err := uio.NewDagReader(t.Context(), node, dag)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) || r.Size() != uint64(len(data)) {
		t.Errorf("%d of %d bytes, size %d, %v", len(got), len(data), r.Size(), err)
	}
	rnd := rand.New(rand.NewPCG(6, 1))
	for range 20 {
		from := rnd.Int64N(int64(len(data)))
		got := make([]byte, rnd.Int64N(int64(len(data))-from))
		if _, err := r.Seek(from, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, data[from:][:len(got)]) {
			t.Errorf("%d bytes at %d: %v", len(got), from, err)
		}
	}
}

func TestImportLayerErrors(t *testing.T) {
	m := blockstest.NewMemory()
	good := importer.DefaultLeafSizes()
	for name, c := range map[string]struct {
		cuts  []importer.Cut
		sizes importer.LeafSizes
	}{
		"cut at the begin":     {[]importer.Cut{{Offset: 0}}, good},
		"cut before":           {[]importer.Cut{{Offset: -1}}, good},
		"cut twice":            {[]importer.Cut{{Offset: 1}, {Offset: 1, Must: true}}, good},
		"cuts that fall":       {[]importer.Cut{{Offset: 2}, {Offset: 1}}, good},
		"no sizes":             {nil, importer.LeafSizes{}},
		"large leaves":         {nil, importer.LeafSizes{Own: 1, Min: 1, Target: 2, Max: importer.MaxLeafSize + 1}},
		"own over the maximum": {nil, importer.LeafSizes{Own: 4, Min: 1, Target: 2, Max: 3}},
		"target at the least":  {nil, importer.LeafSizes{Own: 1, Min: 2, Target: 2, Max: 3}},
	} {
		if _, _, err := importer.Layer(t.Context(), bytes.NewReader([]byte("abc")), c.cuts, c.sizes, m.Put); !errors.Is(err, importer.ErrCuts) {
			t.Errorf("%s: %v", name, err)
		}
	}
	mine := errors.New("mine")
	for _, r := range []io.Reader{iotest.ErrReader(mine), io.MultiReader(bytes.NewReader([]byte("abc")), iotest.ErrReader(mine))} {
		if _, _, err := importer.Layer(t.Context(), r, []importer.Cut{{Offset: 2}, {Offset: 100}}, good, m.Put); !errors.Is(err, mine) {
			t.Errorf("reader's error: %v", err)
		}
	}
}

// FuzzImportLayer cuts anything anywhere: the bytes are the same again, and no
// leaf is larger than it may be.
func FuzzImportLayer(f *testing.F) {
	f.Add([]byte("some bytes of a file"), []byte{1, 2, 3, 4}, uint16(4), uint16(1), uint16(2), uint16(6))
	f.Add(make([]byte, 3000), []byte{255, 0, 255, 128, 7}, uint16(100), uint16(0), uint16(50), uint16(200))
	f.Add([]byte{}, []byte{}, uint16(1), uint16(0), uint16(1), uint16(1))
	f.Fuzz(func(t *testing.T, data, steps []byte, own, least, target, most uint16) {
		var cuts []importer.Cut
		at := int64(0)
		for len(steps) >= 2 { // some of them behind the end
			step := binary.LittleEndian.Uint16(steps)
			steps = steps[2:]
			at += int64(step >> 1)
			cuts = append(cuts, importer.Cut{Offset: at, Must: step&1 == 1})
		}
		sizes := importer.LeafSizes{Own: int(own), Min: int(least), Target: int(target), Max: int(most)}
		m := blockstest.NewMemory()
		root, size, err := importer.Layer(t.Context(), bytes.NewReader(data), cuts, sizes, m.Put)
		if errors.Is(err, importer.ErrCuts) {
			return
		}
		if err != nil || size != int64(len(data)) {
			t.Fatalf("%d of %d bytes, %v", size, len(data), err)
		}
		ends := map[int64]bool{}
		for _, l := range leavesOf(t, m, root, data) {
			ends[l.Offset+l.Size] = true
			if l.Size > importer.MaxLeafSize {
				t.Errorf("a leaf of %d bytes", l.Size)
			}
		}
		for _, c := range cuts {
			if c.Must && c.Offset <= int64(len(data)) && !ends[c.Offset] {
				t.Errorf("no leaf ends at %d", c.Offset)
			}
		}
	})
}
