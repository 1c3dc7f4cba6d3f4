// Package importer makes UnixFS files: as other tools make them, or cut so that
// a layer's ranges are read, and shared with other layers, leaf by leaf.
package importer

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

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// How Kubo's `ipfs add --cid-version=1` makes a file, and so nerdctl: the size
// of its leaves in bytes, and the number of children of an inner node.
const (
	fileLeafSize = 256 << 10
	fileLinks    = 174
)

// Profile is a way to make files that others have too, and so the same CIDs.
type Profile string

// UnixFS2025 is IPIP-499's profile for files of CIDv1: SHA-256, raw
// leaves of 1 MiB, a balanced tree of 1024 links a node.
const UnixFS2025 Profile = "unixfs-v1-2025"

const (
	unixfs2025LeafSize = 1 << 20
	unixfs2025Links    = 1024
)

// ErrProfile is returned for a profile that is not known.
var ErrProfile = errors.New("unknown profile")

// Check returns ErrProfile unless the profile is known or "".
func (p Profile) Check() error {
	if p != "" && p != UnixFS2025 {
		return fmt.Errorf("import: %w %q, there is %s", ErrProfile, string(p), UnixFS2025)
	}
	return nil
}

// File reads r to its end and makes a UnixFS file of it: CIDv1, SHA-256, raw
// leaves of 256 KiB, a balanced tree of 174 links a node. Content that fits in
// one leaf is that raw block alone, so its CID follows from its SHA-256.
//
// Each block is given to put before any block that links to it; put may keep
// the block. File returns the root, the number of bytes read, and the first
// error of r, put or ctx.
func File(ctx context.Context, r io.Reader, put ipfs.PutFunc) (root cid.Cid, size int64, err error) {
	return importFile(ctx, r, put, fileLinks, fixed(fileLeafSize))
}

// ByProfile is like [File], for a profile other than Kubo's.
func ByProfile(ctx context.Context, p Profile, r io.Reader, put ipfs.PutFunc) (root cid.Cid, size int64, err error) {
	if p != UnixFS2025 {
		return cid.Undef, 0, fmt.Errorf("import: %w %q", ErrProfile, string(p))
	}
	return importFile(ctx, r, put, unixfs2025Links, fixed(unixfs2025LeafSize))
}

// splitter cuts a stream into the contents of leaves.
type splitter = chunker.Splitter

func fixed(leafSize int64) func(io.Reader) splitter {
	return func(r io.Reader) splitter { return chunker.NewSizeSplitter(r, leafSize) }
}

// importFile makes a balanced tree of the leaves that split cuts r into.
func importFile(ctx context.Context, r io.Reader, put ipfs.PutFunc, links int, split func(io.Reader) splitter) (root cid.Cid, size int64, err error) {
	in := &countingReader{ctx: ctx, r: r}
	sink := &importSink{ctx: ctx, put: put}
	params := helpers.DagBuilderParams{
		Dagserv:    sink,
		RawLeaves:  true,
		Maxlinks:   links,
		CidBuilder: cid.V1Builder{Codec: cid.DagProtobuf, MhType: multihash.SHA2_256},
	}
	builder, err := params.New(split(in))
	if err != nil {
		return cid.Undef, 0, fmt.Errorf("import: %w", err)
	}
	node, err := balanced.Layout(builder)
	if err == nil {
		err = in.err // splitters take io.ErrUnexpectedEOF for the end
	}
	if err != nil {
		return cid.Undef, in.n, fmt.Errorf("import after %d bytes: %w", in.n, err)
	}
	return node.Cid(), in.n, nil
}

// countingReader counts what is read and ends with its context, which the
// importer does not know of.
type countingReader struct {
	ctx context.Context
	r   io.Reader
	n   int64
	err error // of r, other than io.EOF
}

func (c *countingReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}

// importSink is the part of a DAG service that the importer uses: Add.
type importSink struct {
	ctx context.Context
	put ipfs.PutFunc
}

var errImportOnly = errors.New("import: the importer only adds")

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
