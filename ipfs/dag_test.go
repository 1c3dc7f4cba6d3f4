package ipfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/ipfs/boxo/ipld/merkledag"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/multiformats/go-multihash"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
)

// hold stores blocks in memory, in the manner of an importer.
func hold(t testing.TB, m *blockstest.Memory, bs ...blocks.Block) {
	t.Helper()
	for _, b := range bs {
		if err := m.Put(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
}

func linked(t testing.TB, data string, links ...blocks.Block) *merkledag.ProtoNode {
	t.Helper()
	n := merkledag.NodeWithData([]byte(data))
	if err := n.SetCidBuilder(cid.NewPrefixV1(cid.DagProtobuf, multihash.SHA2_256)); err != nil {
		t.Fatal(err)
	}
	for i, l := range links {
		if err := n.AddRawLink(fmt.Sprint(i), &ipld.Link{Cid: l.Cid()}); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// Every block of a file is visited, each node before what it links to; leaves
// are not got.
func TestWalk(t *testing.T) {
	m := blockstest.NewMemory()
	data := blockstest.Random(t, 1, 50<<20).RawData() // 200 leaves of 256 KiB, 2 nodes above, a root
	root, _, err := importer.File(t.Context(), bytes.NewReader(data), m.Put)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[cid.Cid]bool{}
	nodes := 0
	err = ipfs.Walk(t.Context(), m, root, ipfs.Want{}, func(c cid.Cid, data []byte) error {
		if seen[c] {
			t.Errorf("%s twice", c)
		}
		if len(seen) == 0 && c != root {
			t.Error("the root is not the first")
		}
		seen[c] = true
		if (data == nil) != (c.Type() == cid.Raw) {
			t.Errorf("%s: %d bytes", c, len(data))
		}
		if data != nil {
			nodes++
		}
		return nil
	})
	if gets, served := m.Counts(); err != nil || len(seen) != m.Len() || served != nodes || gets > 3 {
		t.Errorf("%v: %d of %d blocks, %d of %d nodes got in %d Gets", err, len(seen), m.Len(), served, nodes, gets)
	}
}

func TestWalkOrderAndErrors(t *testing.T) {
	m := blockstest.NewMemory()
	a, b := blockstest.Random(t, 1, 10), blockstest.Random(t, 2, 10)
	x, y := linked(t, "x", a), linked(t, "y", b, a)
	top := linked(t, "top", x, y, x, a) // a directory would do too: the data is not looked at
	hold(t, m, a, b, x, y, top)
	var order []cid.Cid
	visit := func(c cid.Cid, _ []byte) error {
		order = append(order, c)
		return nil
	}
	if err := ipfs.Walk(t.Context(), m, top.Cid(), ipfs.Want{}, visit); err != nil {
		t.Fatal(err)
	}
	want := []cid.Cid{top.Cid(), a.Cid(), x.Cid(), a.Cid(), y.Cid(), b.Cid(), a.Cid()}
	if fmt.Sprint(order) != fmt.Sprint(want) {
		t.Errorf("order %v, want %v", order, want)
	}
	if err := ipfs.Walk(t.Context(), m, a.Cid(), ipfs.Want{}, visit); err != nil {
		t.Errorf("a raw block alone: %v", err)
	}

	mine := errors.New("mine")
	if err := ipfs.Walk(t.Context(), m, top.Cid(), ipfs.Want{}, func(cid.Cid, []byte) error { return mine }); err != mine {
		t.Errorf("visit's error: %v", err)
	}
	cbor := linked(t, "cbor")
	if err := cbor.AddRawLink("", &ipld.Link{Cid: cid.NewCidV1(cid.DagCBOR, a.Cid().Hash())}); err != nil {
		t.Fatal(err)
	}
	gone := linked(t, "gone", linked(t, "not there"))
	hold(t, m, cbor, gone)
	garbage, err := blocks.NewBlockWithCid([]byte{0xff, 0xff}, prefixed(t, []byte{0xff, 0xff}))
	if err != nil {
		t.Fatal(err)
	}
	hold(t, m, garbage)
	var missing *ipfs.UnavailableError
	for what, tt := range map[string]struct {
		root cid.Cid
		ok   func(error) bool
	}{
		"another codec": {cbor.Cid(), func(err error) bool { return errors.Is(err, ipfs.ErrNotFile) }},
		"missing":       {gone.Cid(), func(err error) bool { return errors.As(err, &missing) }},
		"garbage":       {garbage.Cid(), func(err error) bool { return errors.Is(err, ipfs.ErrMalformed) }},
		"no CID":        {cid.Undef, func(err error) bool { return errors.Is(err, ipfs.ErrBadCID) }},
	} {
		if err := ipfs.Walk(t.Context(), m, tt.root, ipfs.Want{}, visit); !tt.ok(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func prefixed(t testing.TB, data []byte) cid.Cid {
	t.Helper()
	c, err := cid.NewPrefixV1(cid.DagProtobuf, multihash.SHA2_256).Sum(data)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Whatever the bytes of a node, its links are read within bounds, or refused.
func FuzzWalk(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0x0a, 0x00})
	f.Add(linked(f, "x", blockstest.Random(f, 1, 10)).RawData())
	f.Fuzz(func(t *testing.T, data []byte) {
		m := blockstest.NewMemory()
		b, err := blocks.NewBlockWithCid(data, prefixed(t, data))
		if err != nil {
			t.Fatal(err)
		}
		hold(t, m, b)
		visits := 0
		err = ipfs.Walk(t.Context(), m, b.Cid(), ipfs.Want{}, func(cid.Cid, []byte) error {
			visits++
			return nil
		})
		if err == nil && (visits < 1 || visits > 1+len(data)/8) {
			t.Errorf("%d visits for %d bytes", visits, len(data))
		}
	})
}
