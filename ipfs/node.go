package ipfs

import (
	"fmt"
	"math"

	"github.com/ipfs/go-cid"
	"google.golang.org/protobuf/encoding/protowire"
)

// maxLinks is how many links a node may have. A block of [MaxBlockSize] full
// of SHA-256 links has about 45,000.
const maxLinks = 1 << 16

// The kinds of UnixFS nodes that make up a file.
const (
	unixfsRaw  = 0
	unixfsFile = 2
)

// fileNode is one decoded node of a UnixFS file.
type fileNode struct {
	data  []byte // the bytes it carries itself; they come before its children's
	size  int64  // bytes of data and of all children
	links []fileLink
}

type fileLink struct {
	cid   cid.Cid
	size  int64  // bytes of the file below it
	tsize uint64 // bytes of the blocks below it, if the writer told; unverified
}

// decodeNode decodes a verified block of a UnixFS file: a raw leaf, or a
// dag-pb node. It follows https://ipld.io/specs/codecs/dag-pb/spec/ and
// https://specs.ipfs.tech/unixfs/; an error wraps [ErrMalformed] or
// [ErrNotFile]. The node's data is a part of block.
func decodeNode(c cid.Cid, block []byte) (fileNode, error) {
	switch c.Type() {
	case cid.Raw:
		return fileNode{data: block, size: int64(len(block))}, nil
	case cid.DagProtobuf:
		n, err := decodePB(block)
		if err != nil {
			return fileNode{}, fmt.Errorf("ipfs: node %s: %w", c, err)
		}
		return n, nil
	default:
		return fileNode{}, fmt.Errorf("ipfs: node %s: %w: codec 0x%x is neither raw nor dag-pb", c, ErrNotFile, c.Type())
	}
}

// decodePB decodes a PBNode: links (field 2), then data (field 1), though
// writers of old put them the other way round.
func decodePB(block []byte) (fileNode, error) {
	var n fileNode
	var data []byte
	var hasData bool
	for len(block) > 0 {
		num, value, rest, err := bytesField(block)
		if err != nil {
			return n, err
		}
		block = rest
		switch num {
		case 1:
			if hasData {
				return n, fmt.Errorf("%w: two data fields", ErrMalformed)
			}
			data, hasData = value, true
		case 2:
			if len(n.links) == maxLinks {
				return n, fmt.Errorf("%w: more than %d links", ErrMalformed, maxLinks)
			}
			l, err := decodeLink(value)
			if err != nil {
				return n, err
			}
			n.links = append(n.links, l)
		default:
			return n, fmt.Errorf("%w: dag-pb has no field %d", ErrMalformed, num)
		}
	}
	if !hasData {
		return n, fmt.Errorf("%w: a dag-pb node without UnixFS data", ErrNotFile)
	}
	return n, n.decodeUnixFS(data)
}

// decodeLink decodes a PBLink: hash (1), name (2, unused in files), size (3).
func decodeLink(b []byte) (fileLink, error) {
	var l fileLink
	for len(b) > 0 {
		num, typ, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			return l, badWire(tag)
		}
		b = b[tag:]
		var n int
		switch {
		case num == 1 && typ == protowire.BytesType:
			var hash []byte
			if hash, n = protowire.ConsumeBytes(b); n >= 0 {
				c, err := cid.Cast(hash)
				if err != nil {
					return l, fmt.Errorf("%w: link: %w", ErrMalformed, err)
				}
				if err := CheckCID(c); err != nil {
					return l, fmt.Errorf("%w: link: %w", ErrMalformed, err)
				}
				l.cid = c
			}
		case num == 2 && typ == protowire.BytesType:
			_, n = protowire.ConsumeBytes(b)
		case num == 3 && typ == protowire.VarintType:
			l.tsize, n = protowire.ConsumeVarint(b)
		default:
			return l, fmt.Errorf("%w: a dag-pb link has no field %d of wire type %d", ErrMalformed, num, typ)
		}
		if n < 0 {
			return l, badWire(n)
		}
		b = b[n:]
	}
	if !l.cid.Defined() {
		return l, fmt.Errorf("%w: a link without a CID", ErrMalformed)
	}
	return l, nil
}

// decodeUnixFS decodes the UnixFS message and checks it against the links:
// type (1), data (2), filesize (3), blocksizes (4). Other fields (mode, mtime)
// say nothing of the contents.
func (n *fileNode) decodeUnixFS(b []byte) error {
	typ, filesize, hasSize := uint64(math.MaxUint64), uint64(0), false
	var sizes int
	blocksize := func(v uint64) error {
		if sizes == len(n.links) {
			return fmt.Errorf("%w: more block sizes than the %d links", ErrMalformed, len(n.links))
		}
		if v > math.MaxInt64 {
			return fmt.Errorf("%w: a block size of %d bytes", ErrMalformed, v)
		}
		n.links[sizes].size = int64(v)
		sizes++
		return nil
	}
	for len(b) > 0 {
		num, wire, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			return badWire(tag)
		}
		b = b[tag:]
		var used int
		var err error
		switch {
		case num == 1 && wire == protowire.VarintType:
			typ, used = protowire.ConsumeVarint(b)
		case num == 2 && wire == protowire.BytesType:
			n.data, used = protowire.ConsumeBytes(b)
		case num == 3 && wire == protowire.VarintType:
			filesize, used = protowire.ConsumeVarint(b)
			hasSize = true
		case num == 4 && wire == protowire.VarintType:
			var v uint64
			if v, used = protowire.ConsumeVarint(b); used >= 0 {
				err = blocksize(v)
			}
		case num == 4 && wire == protowire.BytesType: // packed
			var packed []byte
			packed, used = protowire.ConsumeBytes(b)
			for used >= 0 && len(packed) > 0 && err == nil {
				v, m := protowire.ConsumeVarint(packed)
				if m < 0 {
					return badWire(m)
				}
				packed = packed[m:]
				err = blocksize(v)
			}
		default:
			used = protowire.ConsumeFieldValue(num, wire, b)
		}
		if used < 0 {
			return badWire(used)
		}
		if err != nil {
			return err
		}
		b = b[used:]
	}
	if typ != unixfsFile && typ != unixfsRaw {
		return fmt.Errorf("%w: %s", ErrNotFile, unixfsTypeName(typ))
	}
	if sizes != len(n.links) {
		return fmt.Errorf("%w: %d block sizes for %d links", ErrMalformed, sizes, len(n.links))
	}
	n.size = int64(len(n.data))
	for _, l := range n.links {
		if n.size += l.size; n.size < 0 {
			return fmt.Errorf("%w: the block sizes overflow", ErrMalformed)
		}
	}
	if hasSize && filesize != uint64(n.size) {
		return fmt.Errorf("%w: the file size says %d bytes, the parts are %d", ErrMalformed, filesize, n.size)
	}
	return nil
}

// bytesField splits a length-delimited field off b.
func bytesField(b []byte) (num protowire.Number, value, rest []byte, err error) {
	num, typ, tag := protowire.ConsumeTag(b)
	if tag < 0 {
		return 0, nil, nil, badWire(tag)
	}
	if typ != protowire.BytesType {
		return 0, nil, nil, fmt.Errorf("%w: dag-pb has no field %d of wire type %d", ErrMalformed, num, typ)
	}
	value, n := protowire.ConsumeBytes(b[tag:])
	if n < 0 {
		return 0, nil, nil, badWire(n)
	}
	return num, value, b[tag+n:], nil
}

func badWire(n int) error {
	return fmt.Errorf("%w: protobuf: %w", ErrMalformed, protowire.ParseError(n))
}

func unixfsTypeName(typ uint64) string {
	switch typ {
	case 1:
		return "it is a directory"
	case 4:
		return "it is a symlink"
	case 5:
		return "it is a sharded directory"
	default:
		return fmt.Sprintf("UnixFS type %d", typ)
	}
}
