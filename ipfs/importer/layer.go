package importer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// Cut is a place where a file may be cut into leaves, because what lies before
// it and behind it is read, and changes, apart.
type Cut struct {
	Offset int64 // bytes of the file before it
	Must   bool  // it has to be cut here
}

// LeafSizes say how large leaves become that are cut at given places, in bytes
// each. What lies between two cuts is a part below.
type LeafSizes struct {
	// Own is the size from which a part makes leaves of its own: if it does not
	// change, they do not, whatever its neighbours do.
	Own int
	// Smaller parts share leaves, of Target bytes on average, at least of Min
	// unless a Cut or a large part ends them, and at most of Max.
	Min, Target, Max int
}

// MaxLeafSize is the largest leaf that is made, in bytes. Blocks over 1 MiB are
// not taken by all implementations.
const MaxLeafSize = 1 << 20

// layerLinks is the number of children of an inner node of a layer. With so
// many, most layers are one root with leaves, and the root is still below 1 MiB.
const layerLinks = 16 << 10

// ErrCuts is returned for cuts or sizes that no file can be cut by.
var ErrCuts = errors.New("impossible cuts")

// DefaultLeafSizes are those of layers. How they were found is told in
// docs/decisions.md.
func DefaultLeafSizes() LeafSizes {
	return LeafSizes{Own: 32 << 10, Min: 16 << 10, Target: 64 << 10, Max: 256 << 10}
}

func (s LeafSizes) check() error {
	if s.Min < 0 || s.Min >= s.Target || s.Target > s.Max || s.Own <= 0 || s.Own > s.Max || s.Max > MaxLeafSize {
		return fmt.Errorf("import: leaves of sizes %+v, at most %d: %w", s, MaxLeafSize, ErrCuts)
	}
	return nil
}

// Layer is like [File], for a file of which ranges are read and that
// has much in common with others: its leaves are cut at some of cuts, which rise,
// and chosen by what lies before them, so that a change of the file changes
// leaves near it only. A part of more than [MaxLeafSize] is divided evenly.
// A file without a cut has leaves of that size.
//
// It holds one leaf at a time. Beside the errors of File there is [ErrCuts].
func Layer(ctx context.Context, r io.Reader, cuts []Cut, sizes LeafSizes, put ipfs.PutFunc) (root cid.Cid, size int64, err error) {
	if err := sizes.check(); err != nil {
		return cid.Undef, 0, err
	}
	last := int64(0)
	for _, c := range cuts {
		if c.Offset <= last {
			return cid.Undef, 0, fmt.Errorf("import: a cut at %d behind one at %d: %w", c.Offset, last, ErrCuts)
		}
		last = c.Offset
	}
	return importFile(ctx, r, put, layerLinks, func(r io.Reader) splitter {
		return &cutter{r: r, cuts: cuts, sizes: sizes}
	})
}

// cutter is a splitter that cuts at given places.
type cutter struct {
	r     io.Reader
	cuts  []Cut // that are still to come
	sizes LeafSizes

	pos   int64  // bytes read
	leaf  []byte // parts that share the next leaf
	large int64  // bytes left of a part that has leaves of its own
}

func (c *cutter) Reader() io.Reader { return c.r }

// NextBytes returns the next leaf, io.EOF after the last.
func (c *cutter) NextBytes() ([]byte, error) {
	for {
		if c.large > 0 {
			return c.share()
		}
		size, must := int64(MaxLeafSize), true // after the last cut
		if len(c.cuts) > 0 {
			size, must = c.cuts[0].Offset-c.pos, c.cuts[0].Must
		}
		if len(c.leaf) > 0 && (size >= int64(c.sizes.Own) || size > int64(c.sizes.Max-len(c.leaf))) {
			return c.flush(), nil
		}
		if len(c.cuts) > 0 {
			c.cuts = c.cuts[1:]
		}
		if size >= int64(c.sizes.Own) {
			c.large = size
			continue
		}
		whole, err := c.read(int(size))
		if err != nil {
			return nil, err
		}
		if !whole || must || c.chosen(size) {
			return c.flush(), nil
		}
	}
}

// share returns the next leaf of a large part: one of as many equal ones as it
// needs.
func (c *cutter) share() ([]byte, error) {
	leaves := (c.large + MaxLeafSize - 1) / MaxLeafSize
	size := (c.large + leaves - 1) / leaves
	whole, err := c.read(int(size))
	if err != nil {
		return nil, err
	}
	c.large -= size
	if !whole {
		c.large, c.cuts = 0, nil
	}
	return c.flush(), nil
}

// read appends the next n bytes to the leaf. If the file ends before, whole is
// false; if there is nothing at all to be had, the error is io.EOF.
func (c *cutter) read(n int) (whole bool, err error) {
	have := len(c.leaf)
	c.leaf = append(c.leaf, make([]byte, n)...)
	n, err = io.ReadFull(c.r, c.leaf[have:])
	c.leaf = c.leaf[:have+n]
	c.pos += int64(n)
	if err == io.ErrUnexpectedEOF || err == io.EOF && have > 0 {
		return false, nil
	}
	return err == nil, err
}

// flush returns the leaf, and begins the next.
func (c *cutter) flush() []byte {
	leaf := make([]byte, len(c.leaf))
	copy(leaf, c.leaf)
	c.leaf = c.leaf[:0]
	return leaf
}

// chosen tells whether the leaf ends here, after a part of size bytes. That
// follows from the part alone: from its last bytes, which in a gzip member are
// the checksum of what it holds. A larger part is more likely to be chosen, so
// that it is bytes that are counted.
func (c *cutter) chosen(size int64) bool {
	const key = 8
	if len(c.leaf) < max(c.sizes.Min, key) {
		return false
	}
	// The multiplier is that of Fibonacci hashing, 2^64 divided by the golden ratio.
	hash := binary.LittleEndian.Uint64(c.leaf[len(c.leaf)-key:]) * 0x9e3779b97f4a7c15
	return (hash>>32)*uint64(c.sizes.Target-c.sizes.Min) < uint64(size)<<32
}
