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

// Reader reads the content, without the blocks it is made of.
func (c Content) Reader() io.Reader {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], c.Seed)
	return io.LimitReader(rand.NewChaCha8(key), c.Size)
}

// Leaves is how many leaves the content has.
func (c Content) Leaves() int { return int((c.Size + c.Leaf - 1) / c.Leaf) }

// build makes the content's blocks and gives those that keep wants (by the
// index of the leaf), and the root, to put, in batches.
func (c Content) build(ctx context.Context, keep func(leaf int) bool, put func(context.Context, ...blocks.Block) error) (cid.Cid, error) {
	if c.Size <= 0 || c.Leaf <= 0 || c.Leaf > ipfs.MaxBlockSize {
		return cid.Undef, fmt.Errorf("content of %d bytes in leaves of %d", c.Size, c.Leaf)
	}
	prefix := cid.NewPrefixV1(cid.Raw, multihash.SHA2_256)
	file := unixfs.NewFSNode(unixfspb.Data_File)
	root := &merkledag.ProtoNode{}
	if err := root.SetCidBuilder(cid.NewPrefixV1(cid.DagProtobuf, multihash.SHA2_256)); err != nil {
		return cid.Undef, err
	}
	var batch []blocks.Block
	var size int64
	r := c.Reader()
	for i := range c.Leaves() {
		data := make([]byte, min(c.Leaf, c.Size-int64(i)*c.Leaf))
		if _, err := io.ReadFull(r, data); err != nil {
			return cid.Undef, err
		}
		id, err := prefix.Sum(data)
		if err != nil {
			return cid.Undef, err
		}
		file.AddBlockSize(uint64(len(data)))
		if err := root.AddRawLink("", &ipld.Link{Size: uint64(len(data)), Cid: id}); err != nil {
			return cid.Undef, err
		}
		if !keep(i) {
			continue
		}
		b, err := blocks.NewBlockWithCid(data, id)
		if err != nil {
			return cid.Undef, err
		}
		batch = append(batch, b)
		if size += int64(len(data)); size >= batchBytes {
			if err := put(ctx, batch...); err != nil {
				return cid.Undef, err
			}
			batch, size = nil, 0
		}
	}
	data, err := file.GetBytes()
	if err != nil {
		return cid.Undef, err
	}
	root.SetData(data)
	return root.Cid(), put(ctx, append(batch, root)...)
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
