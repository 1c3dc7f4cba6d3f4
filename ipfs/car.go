package ipfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipld/go-car/v2"
	"github.com/ipld/go-car/v2/storage"
)

// Limits on a CAR that is read.
const (
	carHeaderBytes  = 64 << 10 // about 1,700 roots
	carSectionBytes = MaxBlockSize + 256
)

// carBatch is how many blocks are held while a CAR is written.
const carBatch = 16

// ErrBadCAR is returned for what is no CAR, or for one that is cut off or
// breaks a limit.
var ErrBadCAR = errors.New("bad CAR")

// CARReader reads a CAR, version 1 or 2, of which it trusts nothing.
type CARReader struct {
	// Roots are those that the CAR names. Nobody knows yet whether their
	// blocks are in it.
	Roots []cid.Cid
	r     *car.BlockReader
	n     int
}

// NewCARReader reads the header of a CAR. The error wraps [ErrBadCAR].
func NewCARReader(r io.Reader) (*CARReader, error) {
	br, err := car.NewBlockReader(r, car.WithTrustedCAR(true), // whoever stores the blocks verifies them
		car.MaxAllowedHeaderSize(carHeaderBytes), car.MaxAllowedSectionSize(carSectionBytes))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadCAR, noEOF(err))
	}
	return &CARReader{Roots: br.Roots, r: br}, nil
}

// Next returns the next block, of at most [MaxBlockSize] and a few bytes, and
// not verified; at the end [io.EOF]. Other errors wrap [ErrBadCAR].
func (c *CARReader) Next() (blocks.Block, error) {
	b, err := c.r.Next()
	if err == io.EOF {
		return nil, io.EOF
	}
	if err != nil {
		return nil, fmt.Errorf("%w after %d blocks: %w", ErrBadCAR, c.n, noEOF(err))
	}
	c.n++
	return b, nil
}

// noEOF makes of an end that came too early an error that says so.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// WriteCAR writes a CAR of version 1 that names root and holds the DAGs of
// parts, each block once, in an order that follows from the DAGs alone. Blocks
// are got as want says. Errors are those of [Walk], blocks and w.
func WriteCAR(ctx context.Context, from Blocks, root cid.Cid, parts []cid.Cid, want Want, w io.Writer) error {
	out, err := storage.NewWritable(w, []cid.Cid{root}, car.WriteAsCarV1(true), car.UseWholeCIDs(true))
	if err != nil {
		return fmt.Errorf("ipfs: write CAR: %w", err)
	}
	put := func(c cid.Cid, data []byte) error {
		if err := out.Put(ctx, c.KeyString(), data); err != nil {
			return fmt.Errorf("ipfs: write CAR: %w", err)
		}
		return nil
	}
	for _, part := range parts {
		var leaves []cid.Cid
		flush := func() error {
			data := make(map[cid.Cid][]byte, len(leaves))
			want.Root, want.CIDs = part, leaves
			err := from.Get(ctx, want, func(c cid.Cid, block []byte) error {
				data[c] = bytes.Clone(block)
				return nil
			})
			if err != nil {
				return err
			}
			for _, c := range leaves {
				if err := put(c, data[c]); err != nil {
					return err
				}
			}
			leaves = leaves[:0]
			return nil
		}
		err := Walk(ctx, from, part, want, func(c cid.Cid, data []byte) error {
			if data != nil {
				return put(c, data)
			}
			had, err := out.Has(ctx, c.KeyString())
			if had || err != nil {
				return err
			}
			if leaves = append(leaves, c); len(leaves) < carBatch {
				return nil
			}
			return flush()
		})
		if err == nil {
			err = flush()
		}
		if err != nil {
			return err
		}
	}
	if err := out.Finalize(); err != nil {
		return fmt.Errorf("ipfs: write CAR: %w", err)
	}
	return nil
}
