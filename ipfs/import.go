package ipfs

import (
	"context"
	"errors"
	"fmt"
	"io"

	chunker "github.com/ipfs/boxo/chunker"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/multiformats/go-multihash"
)

// The sizes of leaves, in bytes.
const (
	// fileLeafSize is that of Kubo's `ipfs add --cid-version=1`, which nerdctl
	// uses too.
	fileLeafSize = 256 << 10
	// layerLeafSize makes a range cost little more than itself: of what a
	// Python program with NumPy fetches before its first output, leaves of 256
	// KiB make 24.5 MB, these 19.8.
	layerLeafSize = 64 << 10
)

// importLinks is the number of children of an inner node, as Kubo's.
const importLinks = 174

// Import reads r to its end and makes a UnixFS file of it: CIDv1, SHA-256, raw
// leaves of 256 KiB, a balanced tree of 174 links a node. Content that fits in
// one leaf is that raw block alone, so its CID follows from its SHA-256.
//
// Each block is given to put before any block that links to it; put may keep
// the block. Import returns the root, the number of bytes read, and the first
// error of r, put or ctx.
func Import(ctx context.Context, r io.Reader, put PutFunc) (root cid.Cid, size int64, err error) {
	return importFile(ctx, r, fileLeafSize, put)
}

// ImportLayer is like [Import], for a file of which ranges are read: its leaves
// have 64 KiB.
func ImportLayer(ctx context.Context, r io.Reader, put PutFunc) (root cid.Cid, size int64, err error) {
	return importFile(ctx, r, layerLeafSize, put)
}

func importFile(ctx context.Context, r io.Reader, leafSize int64, put PutFunc) (root cid.Cid, size int64, err error) {
	in := &countingReader{ctx: ctx, r: r}
	sink := &importSink{ctx: ctx, put: put}
	params := helpers.DagBuilderParams{
		Dagserv:    sink,
		RawLeaves:  true,
		Maxlinks:   importLinks,
		CidBuilder: cid.V1Builder{Codec: cid.DagProtobuf, MhType: multihash.SHA2_256},
	}
	builder, err := params.New(chunker.NewSizeSplitter(in, leafSize))
	if err != nil {
		return cid.Undef, 0, fmt.Errorf("ipfs: import: %w", err)
	}
	node, err := balanced.Layout(builder)
	if err != nil {
		return cid.Undef, in.n, fmt.Errorf("ipfs: import after %d bytes: %w", in.n, err)
	}
	return node.Cid(), in.n, nil
}

// countingReader counts what is read and ends with its context, which the
// importer does not know of.
type countingReader struct {
	ctx context.Context
	r   io.Reader
	n   int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// importSink is the part of a DAG service that the importer uses: Add.
type importSink struct {
	ctx context.Context
	put PutFunc
}

var errImportOnly = errors.New("ipfs: the importer only adds")

// Add gives the node to put. The importer passes a context of its own making,
// so the one of Import is used.
func (s *importSink) Add(_ context.Context, n ipld.Node) error { return s.put(s.ctx, n) }

func (s *importSink) AddMany(ctx context.Context, nodes []ipld.Node) error {
	for _, n := range nodes {
		if err := s.Add(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

func (s *importSink) Get(context.Context, cid.Cid) (ipld.Node, error) { return nil, errImportOnly }

func (s *importSink) GetMany(context.Context, []cid.Cid) <-chan *ipld.NodeOption {
	ch := make(chan *ipld.NodeOption, 1)
	ch <- &ipld.NodeOption{Err: errImportOnly}
	close(ch)
	return ch
}

func (s *importSink) Remove(context.Context, cid.Cid) error       { return errImportOnly }
func (s *importSink) RemoveMany(context.Context, []cid.Cid) error { return errImportOnly }
