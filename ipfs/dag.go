package ipfs

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/ipfs/go-cid"
)

// Limits of [Walk].
const (
	maxVisits   = 1 << 22 // of blocks, those that come twice included
	maxDagNodes = 1 << 20 // that are opened
	openedNodes = 16      // that are held at once, of 2 MiB each at most
)

// Walk visits the blocks of the DAG below root: a block before those that it
// links to, in an order that follows from the DAG alone. Blocks that may link
// to others (dag-pb, so also directories) are got, once each, and visited with
// their data. Raw blocks, which cannot, are visited with data nil and are not
// got; one that is linked to twice is visited twice. want says how to get: its
// Root and CIDs are set here.
//
// Walk returns the first error of visit, ctx or blocks, or one that wraps
// [ErrMalformed] for a node that breaks the rules or a DAG over the limits, or
// [ErrNotFile] for a block of a codec that it cannot follow.
func Walk(ctx context.Context, blocks Blocks, root cid.Cid, want Want, visit func(c cid.Cid, data []byte) error) error {
	if err := CheckCID(root); err != nil {
		return err
	}
	w := dagWalk{visit: visit, seen: make(map[cid.Cid]struct{})}
	next, err := w.reach(nil, root)
	if err != nil {
		return err
	}
	stack := next // the next to open is the last
	for len(stack) > 0 {
		cut := max(0, len(stack)-openedNodes)
		want.Root, want.CIDs = root, slices.Clone(stack[cut:])
		stack = stack[:cut]
		data := make(map[cid.Cid][]byte, len(want.CIDs))
		err := blocks.Get(ctx, want, func(c cid.Cid, block []byte) error {
			data[c] = bytes.Clone(block)
			return nil
		})
		if err != nil {
			return err
		}
		var below []cid.Cid
		for _, c := range slices.Backward(want.CIDs) {
			if below, err = w.open(below, c, data[c]); err != nil {
				return err
			}
		}
		slices.Reverse(below)
		stack = append(stack, below...)
	}
	return nil
}

// dagWalk is a walk under way.
type dagWalk struct {
	visit  func(c cid.Cid, data []byte) error
	seen   map[cid.Cid]struct{} // of those that are opened
	visits int
}

// open visits a node and reaches what it links to.
func (w *dagWalk) open(below []cid.Cid, c cid.Cid, block []byte) ([]cid.Cid, error) {
	if err := w.count(c); err != nil {
		return nil, err
	}
	links, err := dagLinks(block)
	if err != nil {
		return nil, fmt.Errorf("ipfs: node %s: %w", c, err)
	}
	if block == nil {
		block = []byte{} // the empty block
	}
	if err := w.visit(c, block); err != nil {
		return nil, err
	}
	for _, l := range links {
		if below, err = w.reach(below, l); err != nil {
			return nil, err
		}
	}
	return below, nil
}

// reach visits c if it is raw, and else appends it to those to open, but for
// the first time only.
func (w *dagWalk) reach(below []cid.Cid, c cid.Cid) ([]cid.Cid, error) {
	switch c.Type() {
	case cid.Raw:
		if err := w.count(c); err != nil {
			return nil, err
		}
		return below, w.visit(c, nil)
	case cid.DagProtobuf:
		if _, ok := w.seen[c]; ok {
			return below, nil
		}
		if len(w.seen) == maxDagNodes {
			return nil, fmt.Errorf("ipfs: node %s: %w: more than %d nodes", c, ErrMalformed, maxDagNodes)
		}
		w.seen[c] = struct{}{}
		return append(below, c), nil
	default:
		return nil, fmt.Errorf("ipfs: node %s: %w: codec 0x%x is neither raw nor dag-pb", c, ErrNotFile, c.Type())
	}
}

func (w *dagWalk) count(c cid.Cid) error {
	if w.visits++; w.visits > maxVisits {
		return fmt.Errorf("ipfs: block %s: %w: more than %d blocks", c, ErrMalformed, maxVisits)
	}
	return nil
}

// dagLinks returns what a dag-pb node links to, in its order.
func dagLinks(block []byte) ([]cid.Cid, error) {
	var links []cid.Cid
	for len(block) > 0 {
		num, value, rest, err := bytesField(block)
		if err != nil {
			return nil, err
		}
		block = rest
		switch num {
		case 1: // data
		case 2:
			if len(links) == maxLinks {
				return nil, fmt.Errorf("%w: more than %d links", ErrMalformed, maxLinks)
			}
			l, err := decodeLink(value)
			if err != nil {
				return nil, err
			}
			links = append(links, l.cid)
		default:
			return nil, fmt.Errorf("%w: dag-pb has no field %d", ErrMalformed, num)
		}
	}
	return links, nil
}
