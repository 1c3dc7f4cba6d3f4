package ipfs

import (
	"context"
	"fmt"

	"github.com/ipfs/go-cid"
)

// Limits on the tree of a file, whoever made it. A file of 64 GiB in leaves of
// 256 KiB has 262,144 leaves and 13 MiB of inner nodes.
const (
	maxLeaves    = 1 << 20   // parts of one file, at any level of its tree
	maxDepth     = 16        // levels above the leaves; 174 links reach 2^29 leaves with 4
	maxNodeBytes = 128 << 20 // of all inner nodes together
)

// part is a stretch of a file: a leaf, or an inner node that is not opened yet.
type part struct {
	cid  cid.Cid
	size int64
	leaf bool
}

// walk finds the leaves of root's file in order. It opens the inner nodes of
// one level in one Get, so a file costs as many round trips as its tree has
// levels above the leaves.
func walk(ctx context.Context, blocks Blocks, root cid.Cid, maxSize int64) ([]part, error) {
	if err := CheckCID(root); err != nil {
		return nil, err
	}
	w := walker{blocks: blocks, root: root}
	nodes, err := w.open(ctx, []cid.Cid{root})
	if err != nil {
		return nil, err
	}
	n := nodes[root]
	if n.size > maxSize {
		return nil, fmt.Errorf("ipfs: file %s of %d bytes is %w: at most %d are expected", root, n.size, ErrTooLarge, maxSize)
	}
	parts, err := n.appendParts(nil, root)
	if err != nil {
		return nil, fmt.Errorf("ipfs: file %s: %w", root, err)
	}
	for depth := 1; ; depth++ {
		closed := distinctInner(parts)
		if len(closed) == 0 {
			return parts, nil
		}
		if depth == maxDepth {
			return nil, fmt.Errorf("ipfs: file %s: %w: deeper than %d levels", root, ErrMalformed, maxDepth)
		}
		if nodes, err = w.open(ctx, closed); err != nil {
			return nil, err
		}
		if parts, err = expand(parts, nodes); err != nil {
			return nil, fmt.Errorf("ipfs: file %s: %w", root, err)
		}
	}
}

// walker fetches nodes within the limits.
type walker struct {
	blocks    Blocks
	root      cid.Cid
	nodeBytes int
}

// open fetches and decodes nodes.
func (w *walker) open(ctx context.Context, cids []cid.Cid) (map[cid.Cid]fileNode, error) {
	nodes := make(map[cid.Cid]fileNode, len(cids))
	err := w.blocks.Get(ctx, Want{CIDs: cids, Root: w.root}, func(c cid.Cid, block []byte) error {
		if w.nodeBytes += len(block); w.nodeBytes > maxNodeBytes {
			return fmt.Errorf("ipfs: %w: more than %d bytes of inner nodes", ErrMalformed, maxNodeBytes)
		}
		n, err := decodeNode(c, block)
		if err != nil {
			return err
		}
		nodes[c] = n
		return nil
	})
	return nodes, err
}

// distinctInner returns the inner nodes among parts, each once.
func distinctInner(parts []part) []cid.Cid {
	var cids []cid.Cid
	seen := make(map[cid.Cid]bool)
	for _, p := range parts {
		if !p.leaf && !seen[p.cid] {
			seen[p.cid] = true
			cids = append(cids, p.cid)
		}
	}
	return cids
}

// expand puts the parts of each inner node into its place.
func expand(parts []part, nodes map[cid.Cid]fileNode) ([]part, error) {
	out := make([]part, 0, len(parts))
	for _, p := range parts {
		if p.leaf {
			out = append(out, p)
		} else {
			n := nodes[p.cid]
			if n.size != p.size {
				return nil, fmt.Errorf("%w: node %s holds %d bytes, its parent says %d", ErrMalformed, p.cid, n.size, p.size)
			}
			var err error
			if out, err = n.appendParts(out, p.cid); err != nil {
				return nil, err
			}
		}
		if len(out) > maxLeaves {
			return nil, fmt.Errorf("%w: more than %d leaves", ErrMalformed, maxLeaves)
		}
	}
	return out, nil
}

// appendParts appends what the node c consists of: its own data, then its
// children, but for those without bytes.
func (n fileNode) appendParts(out []part, c cid.Cid) ([]part, error) {
	if len(n.data) > 0 {
		out = append(out, part{cid: c, size: int64(len(n.data)), leaf: true})
	}
	for _, l := range n.links {
		if l.size == 0 {
			continue
		}
		leaf := l.isLeaf()
		if leaf && l.size > MaxBlockSize {
			return nil, fmt.Errorf("%w: leaf %s of %d bytes is over the limit of a block", ErrMalformed, l.cid, l.size)
		}
		out = append(out, part{cid: l.cid, size: l.size, leaf: leaf})
	}
	return out, nil
}

// leafOverhead is what a dag-pb leaf's block may have more than its data, in
// bytes: tags, lengths, the file's size, mode and time. An inner node has at
// least 56 more than the bytes below it, for its first link's CID and sizes.
const leafOverhead = 48

// isLeaf tells whether the link leads to a leaf: always when it is a raw
// block, never when it is too large for one. A small dag-pb node may be either,
// and to open all of them would be to fetch all of a file that has dag-pb
// leaves. The total size of its blocks tells them apart; nobody verified that
// size, so [File.ReadAt] checks each leaf as it gets it.
func (l fileLink) isLeaf() bool {
	if l.cid.Type() == cid.Raw {
		return true
	}
	size := uint64(l.size)
	return size <= MaxBlockSize && l.tsize > size && l.tsize <= size+leafOverhead
}
