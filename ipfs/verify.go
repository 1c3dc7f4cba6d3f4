package ipfs

import (
	"bytes"
	"crypto/sha256"
	"fmt"

	"github.com/ipfs/boxo/verifcid"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

// CheckCID tells whether data could be verified against c: its hash function
// is a cryptographic one with a digest of at least 20 bytes, or the identity
// with at most 128 bytes. The error wraps [ErrBadCID].
func CheckCID(c cid.Cid) error {
	if !c.Defined() {
		return fmt.Errorf("ipfs: %w: it is empty", ErrBadCID)
	}
	if err := verifcid.ValidateCid(verifcid.DefaultAllowlist, c); err != nil {
		return fmt.Errorf("ipfs: %w: %s: %w", ErrBadCID, c, err)
	}
	return nil
}

// Verify tells whether data is the block that c names. The error wraps
// [ErrBadCID], [ErrTooLarge] or [ErrBadBlock].
func Verify(c cid.Cid, data []byte) error {
	if err := CheckCID(c); err != nil {
		return err
	}
	if len(data) > MaxBlockSize {
		return fmt.Errorf("ipfs: block %s of %d bytes is %w: the limit is %d bytes", c, len(data), ErrTooLarge, MaxBlockSize)
	}
	got, err := c.Prefix().Sum(data)
	if err != nil {
		return fmt.Errorf("ipfs: %w: %s: %w", ErrBadCID, c, err)
	}
	if !got.Equals(c) {
		return fmt.Errorf("ipfs: %w: %s: the %d bytes are those of %s", ErrBadBlock, c, len(data), got)
	}
	return nil
}

// Request is the first step of every implementation of [Blocks]: it checks
// all CIDs, hands the blocks that follow from their CID alone to fn, and
// returns the distinct others, in order.
func Request(cids []cid.Cid, fn func(c cid.Cid, data []byte) error) ([]cid.Cid, error) {
	for _, c := range cids {
		if err := CheckCID(c); err != nil {
			return nil, err
		}
	}
	seen := make(map[cid.Cid]struct{}, len(cids))
	want := make([]cid.Cid, 0, len(cids))
	for _, c := range cids {
		if _, dup := seen[c]; dup {
			continue
		}
		seen[c] = struct{}{}
		data, ok := known(c)
		if !ok {
			want = append(want, c)
			continue
		}
		if err := fn(c, data); err != nil {
			return nil, err
		}
	}
	return want, nil
}

// known returns the block of a CID that carries its data (the identity
// function), and the empty block, which bitswap does not send.
func known(c cid.Cid) ([]byte, bool) {
	h, err := multihash.Decode(c.Hash())
	if err != nil {
		return nil, false
	}
	switch h.Code {
	case multihash.IDENTITY:
		return h.Digest, true
	case multihash.SHA2_256:
		empty := sha256.Sum256(nil)
		return nil, bytes.Equal(h.Digest, empty[:])
	default:
		return nil, false
	}
}
