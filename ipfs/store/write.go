package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// lease is for how long a block that was put, not fetched, stays though nothing
// pins it: what is being imported is pinned once its root is there. Its time of
// last use is that far in the future, so a lease outlives the process, and one that
// was never redeemed ends by itself.
const lease = time.Hour

// Keep stores a block that was fetched, and verified. One that cannot be
// written is forgotten, and the first of several logged: neither a full disk
// nor a full budget is a reason to fail a read.
func (s *Store) Keep(b blocks.Block) {
	err := s.put(b, s.opts.Now())
	if err != nil && s.failing.CompareAndSwap(false, true) {
		s.log.Error("fetched blocks cannot be kept; reading goes on without", "err", err)
	}
	if err == nil {
		s.failing.Store(false)
	}
}

// Sync has everything on stable storage. One sync of the file system costs far
// less than one for each block.
func (s *Store) Sync() error {
	if err := s.packs.Save(); err != nil {
		return fmt.Errorf("store: blocks: %w", err)
	}
	d, err := os.Open(s.dir)
	if err != nil {
		return fmt.Errorf("store: blocks: %w", err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("store: blocks: sync %s: %w", s.dir, err)
	}
	return nil
}

// Put writes a block that the caller has verified, and leases it for an hour.
// When the budget is used up it evicts; if that frees nothing the error wraps
// [ErrFull].
func (s *Store) Put(ctx context.Context, b blocks.Block) error {
	for {
		err := s.put(b, s.opts.Now().Add(lease))
		if !errors.Is(err, ErrFull) {
			return err
		}
		ok, roomErr := s.makeRoom(ctx, int64(len(b.RawData())))
		if roomErr != nil {
			return fmt.Errorf("%w: %w", err, roomErr)
		}
		if !ok {
			return err
		}
	}
}

// PutMany is [Store.Put] for several blocks.
func (s *Store) PutMany(ctx context.Context, bs []blocks.Block) error {
	for _, b := range bs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.Put(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// put writes one block, unless it is there already and whole, and has it as
// last used at a time.
func (s *Store) put(b blocks.Block, used time.Time) (err error) {
	c := b.Cid()
	if _, ok := ipfs.Known(c); ok {
		return nil // whoever has the CID has the block
	}
	if _, _, ok := s.packs.Size(c.Hash()); ok { // most are new
		if s.View(c, func([]byte) error { return nil }) == nil && s.keep(c, used) {
			return nil
		}
		// It was damaged, or evicted just now.
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("store: block %s: %w", c, err)
		}
	}()
	size := int64(len(b.RawData()))
	if err := s.usage.take(size); err != nil {
		return err
	}
	s.change.Lock()
	defer s.change.Unlock()
	replaced, err := s.packs.Add(c.Hash(), b.RawData(), used)
	switch {
	case err != nil:
		s.usage.give(size)
	case replaced > 0:
		s.usage.give(replaced)
	default:
		s.usage.add(0, 1)
	}
	return err
}

// keep moves a block's time of last use up to used, and tells whether it is
// there.
func (s *Store) keep(c cid.Cid, used time.Time) bool {
	_, before, ok := s.packs.Size(c.Hash())
	if !ok || used.Sub(before) < granularity {
		return ok
	}
	return s.packs.Use(c.Hash(), used)
}
