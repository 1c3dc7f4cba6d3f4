// Package car writes and reads CAR files (https://ipld.io/specs/transport/car/),
// by which an image crosses to where there is no network.
package car

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	gocar "github.com/ipld/go-car/v2"
	"github.com/ipld/go-car/v2/storage"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// Limits on a CAR that is read.
const (
	headerBytes  = 64 << 10 // about 1,700 roots
	sectionBytes = ipfs.MaxBlockSize + 256
)

// batch is how many blocks are held while a CAR is written.
const batch = 16

// ErrBad is returned for what is no CAR, or for one that is cut off or
// breaks a limit.
var ErrBad = errors.New("bad CAR")

// Reader reads a CAR, version 1 or 2, of which it trusts nothing.
type Reader struct {
	// Roots are those that the CAR names. Nobody knows yet whether their
	// blocks are in it.
	Roots []cid.Cid
	r     *gocar.BlockReader
	n     int
}

// NewReader reads the header of a CAR. The error wraps [ErrBad].
func NewReader(r io.Reader) (*Reader, error) {
	br, err := gocar.NewBlockReader(r, gocar.WithTrustedCAR(true), // whoever stores the blocks verifies them
		gocar.MaxAllowedHeaderSize(headerBytes), gocar.MaxAllowedSectionSize(sectionBytes))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBad, noEOF(err))
	}
	return &Reader{Roots: br.Roots, r: br}, nil
}

// Next returns the next block, of at most [ipfs.MaxBlockSize] and a few bytes, and
// not verified; at the end [io.EOF]. Other errors wrap [ErrBad].
func (c *Reader) Next() (blocks.Block, error) {
	b, err := c.r.Next()
	if err == io.EOF {
		return nil, io.EOF
	}
	if err != nil {
		return nil, fmt.Errorf("%w after %d blocks: %w", ErrBad, c.n, noEOF(err))
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

// Write writes a CAR of version 1 that names root and holds the DAGs of
// parts, each block once, in an order that follows from the DAGs alone. Blocks
// are got as want says. Errors are those of [ipfs.Walk], blocks and w.
func Write(ctx context.Context, from ipfs.Blocks, root cid.Cid, parts []cid.Cid, want ipfs.Want, w io.Writer) error {
	out, err := storage.NewWritable(w, []cid.Cid{root}, gocar.WriteAsCarV1(true), gocar.UseWholeCIDs(true))
	if err != nil {
		return fmt.Errorf("car: write: %w", err)
	}
	put := func(c cid.Cid, data []byte) error {
		if err := out.Put(ctx, c.KeyString(), data); err != nil {
			return fmt.Errorf("car: write: %w", err)
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
		err := ipfs.Walk(ctx, from, part, want, func(c cid.Cid, data []byte) error {
			if data != nil {
				return put(c, data)
			}
			had, err := out.Has(ctx, c.KeyString())
			if had || err != nil {
				return err
			}
			if leaves = append(leaves, c); len(leaves) < batch {
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
		return fmt.Errorf("car: write: %w", err)
	}
	return nil
}
