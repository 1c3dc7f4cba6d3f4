package ipfs

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/multiformats/go-multihash"
)

func rawCID(t testing.TB, data []byte) cid.Cid {
	t.Helper()
	c, err := cid.NewPrefixV1(cid.Raw, multihash.SHA2_256).Sum(data)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// seedNodes returns dag-pb nodes as boxo writes them.
func seedNodes(t testing.TB) [][]byte {
	t.Helper()
	var out [][]byte
	for links := range 3 {
		fsn := unixfs.NewFSNode(unixfs.TFile)
		n := merkledag.NodeWithData(nil)
		for i := range links {
			fsn.AddBlockSize(uint64(100 + i))
			err := n.AddRawLink("", &ipld.Link{Cid: rawCID(t, []byte{byte(i)}), Size: uint64(100 + i)})
			if err != nil {
				t.Fatal(err)
			}
		}
		if links != 1 {
			fsn.SetData([]byte("data of its own"))
		}
		raw, err := fsn.GetBytes()
		if err != nil {
			t.Fatal(err)
		}
		n.SetData(raw)
		out = append(out, n.RawData())
	}
	return out
}

// FuzzDecodeNode compares the decoder with boxo's: what it accepts, boxo
// accepts and reads the same.
func FuzzDecodeNode(f *testing.F) {
	for _, seed := range seedNodes(f) {
		f.Add(seed)
	}
	f.Add([]byte{})
	f.Add([]byte("\x0a\x04\x08\x02\x18\x00"))
	f.Fuzz(func(t *testing.T, block []byte) {
		n, err := decodePB(block)
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrNotFile) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		sum := int64(len(n.data))
		for _, l := range n.links {
			if l.size < 0 || !l.cid.Defined() {
				t.Fatalf("link %+v", l)
			}
			sum += l.size
		}
		if sum != n.size || n.size < 0 {
			t.Fatalf("size %d, the parts are %d", n.size, sum)
		}
		theirs, err := merkledag.DecodeProtobuf(block)
		if err != nil {
			return // boxo is stricter in the order and number of fields
		}
		fsn, err := unixfs.FSNodeFromBytes(theirs.Data())
		if err != nil {
			return
		}
		if !bytes.Equal(fsn.Data(), n.data) || fsn.NumChildren() != len(n.links) || len(theirs.Links()) != len(n.links) {
			t.Fatalf("boxo reads %d bytes and %d children, we %d and %d", len(fsn.Data()), fsn.NumChildren(), len(n.data), len(n.links))
		}
		for i, l := range theirs.Links() {
			if l.Cid != n.links[i].cid || fsn.BlockSize(i) != uint64(n.links[i].size) || l.Size != n.links[i].tsize {
				t.Fatalf("link %d: boxo reads %v of %d bytes, we %+v", i, l, fsn.BlockSize(i), n.links[i])
			}
		}
	})
}

func seedTable(t testing.TB, leaves int) (cid.Cid, *table) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 2))
	root := rawCID(t, []byte("root"))
	parts := make([]part, leaves)
	for i := range parts {
		parts[i] = part{cid: rawCID(t, fmt.Append(nil, i)), size: 1 + rnd.Int64N(MaxBlockSize), leaf: true}
	}
	return root, newTable(root, parts)
}

func FuzzParseTable(f *testing.F) {
	root, small := seedTable(f, 3)
	_, empty := seedTable(f, 0)
	f.Add(small.raw, false)
	f.Add(small.raw, true)
	f.Add(empty.raw, false)
	f.Fuzz(func(t *testing.T, raw []byte, seal bool) {
		if seal { // get past the checksum
			raw = reseal(raw)
		}
		tb, err := parseTable(root, raw)
		if err != nil {
			if !errors.Is(err, errTable) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		for i := range tb.n {
			if _, err := tb.cid(i); err != nil {
				t.Fatal(err)
			}
			if start, end := tb.start(i), tb.end(i); start >= end || tb.at(start) != i || tb.at(end-1) != i {
				t.Fatalf("leaf %d from %d to %d", i, start, end)
			}
		}
	})
}

func BenchmarkTableLookup(b *testing.B) {
	_, t := seedTable(b, 40_000) // 10 GiB in leaves of 256 KiB
	rnd := rand.New(rand.NewPCG(1, 2))
	for b.Loop() {
		if _, err := t.cid(t.at(rnd.Int64N(t.size()))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTableParse(b *testing.B) {
	root, t := seedTable(b, 40_000)
	b.SetBytes(int64(len(t.raw)))
	for b.Loop() {
		if _, err := parseTable(root, t.raw); err != nil {
			b.Fatal(err)
		}
	}
}

// reseal puts the right checksum at the end of raw.
func reseal(raw []byte) []byte {
	if len(raw) < sha256.Size {
		return raw
	}
	body := raw[:len(raw)-sha256.Size]
	sum := sha256.Sum256(body)
	return append(bytes.Clone(body), sum[:]...)
}
