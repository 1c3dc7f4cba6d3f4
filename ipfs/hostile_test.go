package ipfs_test

import (
	"errors"
	"os"
	"testing"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/multiformats/go-multihash"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
)

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
