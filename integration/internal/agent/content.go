package agent

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"

	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	unixfspb "github.com/ipfs/boxo/ipld/unixfs/pb"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/multiformats/go-multihash"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// batchBytes is how much is put at once.
const batchBytes = 8 << 20

// Leaves is how many leaves the content has.
func (c Content) Leaves() int { return int((c.Size + c.Leaf - 1) / c.Leaf) }

// leaf makes the bytes of one leaf, alike in no two contents of the same size
// of leaf.
func (c Content) leaf(i int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], c.Seed)
	binary.LittleEndian.PutUint64(key[8:], uint64(i))
	data := make([]byte, min(c.Leaf, c.Size-int64(i)*c.Leaf))
	// It never fails, says its documentation.
	_, _ = rand.NewChaCha8(key).Read(data)
	return data
}

// Reader reads the content, without the blocks it is made of.
func (c Content) Reader() io.Reader { return &contentReader{content: c} }

type contentReader struct {
	content Content
	next    int
	rest    []byte // of the leaf before next
}

func (r *contentReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		if r.next == r.content.Leaves() {
			return 0, io.EOF
		}
		r.rest = r.content.leaf(r.next)
		r.next++
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// known are the CIDs of contents' leaves that were computed before: an agent
// with many peers gives a part of one content to each.
type known map[Content][]cid.Cid

func (k known) leaves(c Content) ([]cid.Cid, error) {
	if k[c] == nil {
		list := make([]cid.Cid, c.Leaves())
		prefix := cid.NewPrefixV1(cid.Raw, multihash.SHA2_256)
		for i := range list {
			var err error
			if list[i], err = prefix.Sum(c.leaf(i)); err != nil {
				return nil, err
			}
		}
		k[c] = list
	}
	return k[c], nil
}

// build makes the content's blocks and gives those that keep wants (by the
// index of the leaf), and the root, to put, in batches.
func (c Content) build(ctx context.Context, k known, keep func(leaf int) bool, put func(context.Context, ...blocks.Block) error) (cid.Cid, error) {
	if c.Size <= 0 || c.Leaf <= 0 || c.Leaf > ipfs.MaxBlockSize {
		return cid.Undef, fmt.Errorf("content of %d bytes in leaves of %d", c.Size, c.Leaf)
	}
	list, err := k.leaves(c)
	if err != nil {
		return cid.Undef, err
	}
	root, err := c.root(list)
	if err != nil {
		return cid.Undef, err
	}
	batch, size := []blocks.Block{root}, int64(0)
	for i, id := range list {
		if !keep(i) {
			continue
		}
		b, err := blocks.NewBlockWithCid(c.leaf(i), id)
		if err != nil {
			return cid.Undef, err
		}
		batch = append(batch, b)
		if size += c.Leaf; size >= batchBytes {
			if err := put(ctx, batch...); err != nil {
				return cid.Undef, err
			}
			batch, size = nil, 0
		}
	}
	return root.Cid(), put(ctx, batch...)
}

// root is the one node that links to all leaves.
func (c Content) root(list []cid.Cid) (*merkledag.ProtoNode, error) {
	file := unixfs.NewFSNode(unixfspb.Data_File)
	root := &merkledag.ProtoNode{}
	if err := root.SetCidBuilder(cid.NewPrefixV1(cid.DagProtobuf, multihash.SHA2_256)); err != nil {
		return nil, err
	}
	for i, id := range list {
		size := uint64(min(c.Leaf, c.Size-int64(i)*c.Leaf))
		file.AddBlockSize(size)
		if err := root.AddRawLink("", &ipld.Link{Size: size, Cid: id}); err != nil {
			return nil, err
		}
	}
	data, err := file.GetBytes()
	root.SetData(data)
	return root, err
}

// keeps tells which leaves a Seed is about.
func (s Seed) keeps(leaf int) bool {
	if s.Of == 0 {
		return true
	}
	for k := range s.Copies {
		if (leaf+7*k)%s.Of == s.Nth {
			return true
		}
	}
	return false
}
