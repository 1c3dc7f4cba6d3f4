// Package store keeps blocks on disk, within a budget: verified when they are
// read, because no block is synced when it is written; least recently used
// goes first, what is pinned stays (ipfs/store/pins). The files are those of
// ipfs/store/pack.
//
// The time of a block's last use is kept to the minute. An eviction takes eight
// bytes of memory a block while it runs.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/buffer"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store/pack"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store/pins"
)

// Options say how much a store may hold. The zero value sets no limit.
type Options struct {
	// Budget is how many bytes of blocks are kept at most; 0: no limit.
	Budget int64
	// KeepFree is how much of the file system is left free, in percent: where
	// it is less, the store takes nothing more, and lets go.
	KeepFree int
	// OnRemove, if not nil, is told what was evicted or collected, or turned out
	// to be damaged, up to 1024 CIDs of codec raw a call. Who evicted or read it
	// waits for its return.
	OnRemove func(cids []cid.Cid)
	// OnPin, if not nil, is told of each pin that is made. It must be quick.
	OnPin func(p pins.Pin)
	// Now is the clock of recency; default [time.Now].
	Now func() time.Time
}

// Store keeps blocks. One that was cut or zeroed by a crash is removed when it
// is read, since its hash does not match, and counts as not there, for others
// to give it again.
//
// A block is known by its multihash; its codec does not matter.
type Store struct {
	dir   string // of the packs
	log   *slog.Logger
	opts  Options
	pins  *pins.Dir
	packs *pack.Packs

	// change is held where a block is put into place or taken away, so that a
	// damaged one is never removed after it was replaced.
	change sync.Mutex

	usage *usage
	// gc is full while somebody evicts, or pins and looks whether all is here.
	gc       chan struct{}
	unpinned chan struct{} // something may go that had to stay
	cancel   context.CancelFunc

	work    sync.WaitGroup
	failing atomic.Bool // fetched blocks could not be kept the last time
}

var _ blockstore.Blockstore = (*Store)(nil)

// Open opens the store below dir. What a crash left half-written goes.
func Open(dir string, o Options, log *slog.Logger) (*Store, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Store{
		dir: filepath.Join(dir, "blocks"), log: log, opts: o,
		gc: make(chan struct{}, 1), unpinned: make(chan struct{}, 1),
	}
	var err error
	if s.pins, err = pins.Open(filepath.Join(dir, "pins")); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if s.packs, err = pack.Open(s.dir, log); err != nil {
		return nil, fmt.Errorf("store: blocks: %w", err)
	}
	s.usage = newUsage(s.dir, o.Budget, o.KeepFree)
	n, bytes := s.packs.Len()
	s.usage.add(bytes, int64(n))
	if s.usage.stat().high() {
		s.usage.wakeUp()
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.work.Go(func() { s.background(ctx) })
	return s, nil
}

// Close ends what goes on in the background. Nothing may be put any more.
func (s *Store) Close() {
	s.cancel()
	s.work.Wait()
	if err := s.packs.Close(); err != nil {
		s.log.Error("the store of blocks was not closed well", "err", err)
	}
}

// Where tells which bytes of which file are a block.
func (s *Store) Where(c cid.Cid) (file string, offset, size int64, ok bool) {
	return s.packs.Where(c.Hash())
}

// read returns a block that was verified just now, in buf if that is large
// enough, and notes that it was of use. If it is damaged it is removed. The
// error for a block that is not there is [ipld.ErrNotFound].
func (s *Store) read(c cid.Cid, buf []byte) ([]byte, error) {
	data, used, err := s.packs.Read(c.Hash(), buf)
	if err == nil {
		err = ipfs.Verify(c, data)
	}
	switch {
	case err == nil:
		s.renew(c, used)
		return data, nil
	case errors.Is(err, pack.ErrNotHeld):
		return nil, ipld.ErrNotFound{Cid: c}
	case errors.Is(err, ipfs.ErrBadBlock), errors.Is(err, ipfs.ErrTooLarge):
		data, removed, err := s.replaced(c)
		if removed && s.opts.OnRemove != nil {
			s.opts.OnRemove([]cid.Cid{cid.NewCidV1(cid.Raw, c.Hash())})
		}
		return data, err
	default:
		return nil, fmt.Errorf("store: block %s: %w", c, err)
	}
}

// granularity is how old a block's time of last use may be before a read
// renews it.
const granularity = time.Minute

// renew notes that a block is used, if that was long ago.
func (s *Store) renew(c cid.Cid, used time.Time) {
	if now := s.opts.Now(); now.Sub(used) >= granularity {
		s.packs.Use(c.Hash(), now)
	}
}

// replaced looks at a damaged block once more, where nobody can change it, and
// removes it.
func (s *Store) replaced(c cid.Cid) (data []byte, removed bool, err error) {
	s.change.Lock()
	defer s.change.Unlock()
	data, _, err = s.packs.Read(c.Hash(), nil)
	if errors.Is(err, pack.ErrNotHeld) {
		return nil, false, ipld.ErrNotFound{Cid: c} // it was evicted while it was read
	}
	if err == nil && ipfs.Verify(c, data) == nil {
		return data, false, nil
	}
	file, offset, _, _ := s.packs.Where(c.Hash())
	if err := s.remove(c); err != nil {
		return nil, false, fmt.Errorf("store: damaged block %s: %w", c, err)
	}
	s.log.Warn("a damaged block was removed; it will be fetched again", "cid", c.String(), "path", file, "offset", offset)
	return nil, true, ipld.ErrNotFound{Cid: c}
}

// remove takes a block away, where change is held.
func (s *Store) remove(c cid.Cid) error {
	size, err := s.packs.Remove(c.Hash())
	if size > 0 {
		s.usage.add(-size, -1)
	}
	return err
}

// View calls fn with a block that was verified just now, which is lent to it
// until it returns. The error for a block that is not there is
// [ipld.ErrNotFound].
func (s *Store) View(c cid.Cid, fn func(data []byte) error) error {
	size, _, ok := s.packs.Size(c.Hash())
	if !ok {
		return ipld.ErrNotFound{Cid: c}
	}
	buf := buffer.Get(int(size))
	defer buffer.Put(buf)
	data, err := s.read(c, buf)
	if err != nil {
		return err
	}
	return fn(data)
}

// Get implements [blockstore.Blockstore].
func (s *Store) Get(_ context.Context, c cid.Cid) (blocks.Block, error) {
	data, err := s.read(c, nil)
	if err != nil {
		return nil, err
	}
	return blocks.NewBlockWithCid(data, c)
}

// Has tells whether there is a block; it may be damaged.
func (s *Store) Has(ctx context.Context, c cid.Cid) (bool, error) {
	_, err := s.GetSize(ctx, c)
	if ipld.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// GetSize returns the length of a block.
func (s *Store) GetSize(_ context.Context, c cid.Cid) (int, error) {
	size, _, ok := s.packs.Size(c.Hash())
	if !ok {
		return 0, ipld.ErrNotFound{Cid: c}
	}
	return int(size), nil
}

// DeleteBlock removes a block, pinned or not.
func (s *Store) DeleteBlock(_ context.Context, c cid.Cid) error {
	s.change.Lock()
	defer s.change.Unlock()
	if err := s.remove(c); err != nil {
		return fmt.Errorf("store: block %s: %w", c, err)
	}
	return nil
}

// AllKeysChan sends the CIDs of all blocks, with the codec raw.
func (s *Store) AllKeysChan(ctx context.Context) (<-chan cid.Cid, error) {
	ch := make(chan cid.Cid)
	go func() {
		defer close(ch)
		err := s.packs.All(ctx, func(e pack.Entry) error {
			select {
			case ch <- cid.NewCidV1(cid.Raw, e.Hash):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		if err != nil && ctx.Err() == nil {
			s.log.Error("the blocks cannot be listed", "err", err)
		}
	}()
	return ch, nil
}
