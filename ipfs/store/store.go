// Package store keeps blocks on disk, within a budget: verified when they are
// read, because no block is synced when it is written; least recently used
// goes first, what is pinned stays (ipfs/store/pins).
//
// Nothing of a block is kept in memory. Its file's modification time is the
// time of its last use, to the minute; how many bytes there are is counted
// once, in the background, when the store is opened, and kept exactly from
// then on. An eviction looks at one directory at a time and takes eight bytes
// of memory a block while it runs.
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store/pins"
)

// Options say how much a store may hold. The zero value sets no limit.
type Options struct {
	// Budget is how many bytes of blocks are kept at most; 0: no limit.
	Budget int64
	// KeepFree is how much of the file system is left free, in percent: where
	// it is less, the store takes nothing more, and lets go.
	KeepFree int
	// OnRemove, if not nil, is told what was evicted or collected, up to 1024
	// CIDs of codec raw a call, one call at a time. What it takes an eviction
	// waits for, and nobody else.
	OnRemove func(cids []cid.Cid)
	// OnPin, if not nil, is told of each pin that is made. It must be quick.
	OnPin func(p pins.Pin)
	// Now is the clock of recency; default [time.Now].
	Now func() time.Time
}

// Store keeps blocks as files, blocks/<aa>/<CIDv1 of codec raw>, where aa are
// the two characters before the last. A file appears by rename and is not
// synced, so after a crash it can be cut or full of zeros: every read verifies
// the hash, and what does not match is removed and counts as not there, for
// bitswap to fetch again.
//
// A block is known by its multihash; its codec does not matter.
type Store struct {
	dir  string // of the blocks
	tmp  string
	log  *slog.Logger
	opts Options
	pins *pins.Dir

	// change is held where a file is put into place, renewed or taken away, so
	// that a damaged one is never removed after it was replaced, nor an old one
	// after it was found of use.
	change  sync.Mutex
	counted map[string]bool // directories of blocks that were counted; nil: all

	usage *usage
	// gc is full while somebody evicts, or pins and looks whether all is here.
	gc       chan struct{}
	ready    chan struct{} // closed when all is counted
	unpinned chan struct{} // something may go that had to stay
	cancel   context.CancelFunc

	mu      sync.Mutex
	cond    *sync.Cond // something was written, or came to be written
	pending map[string]blocks.Block
	queue   []blocks.Block
	bytes   int // of pending
	closed  bool
	work    sync.WaitGroup
}

var _ blockstore.Blockstore = (*Store)(nil)

// Open opens the store below dir. What a crash left half-written goes.
func Open(dir string, o Options, log *slog.Logger) (*Store, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Store{
		dir: filepath.Join(dir, "blocks"), tmp: filepath.Join(dir, "tmp"), log: log, opts: o,
		pending: make(map[string]blocks.Block), counted: make(map[string]bool),
		gc: make(chan struct{}, 1), ready: make(chan struct{}), unpinned: make(chan struct{}, 1),
	}
	s.cond = sync.NewCond(&s.mu)
	if err := os.RemoveAll(s.tmp); err != nil {
		return nil, fmt.Errorf("store: blocks: %w", err)
	}
	for _, d := range []string{s.dir, s.tmp} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("store: blocks: %w", err)
		}
	}
	var err error
	if s.pins, err = pins.Open(filepath.Join(dir, "pins")); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	s.usage = newUsage(s.dir, o.Budget, o.KeepFree)
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.work.Go(s.write)
	s.work.Go(func() { s.background(ctx) })
	return s, nil
}

// Close writes what is pending.
func (s *Store) Close() {
	s.mu.Lock()
	s.closed = true
	s.cond.Broadcast()
	s.mu.Unlock()
	s.cancel()
	s.work.Wait()
}

// Path is the file of a block, whether it is there or not.
func (s *Store) Path(c cid.Cid) string {
	name := cid.NewCidV1(cid.Raw, c.Hash()).String()
	return filepath.Join(s.dir, name[len(name)-3:len(name)-1], name)
}

// read returns a block that was verified just now, and notes that it was of
// use. If the file is damaged it is removed. The error for a block that is not
// there is [ipld.ErrNotFound].
func (s *Store) read(c cid.Cid) ([]byte, error) {
	path := s.Path(c)
	data, used, err := readBlockFile(path)
	if err == nil {
		err = ipfs.Verify(c, data)
	}
	switch {
	case err == nil:
		s.renew(path, used)
		return data, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, ipld.ErrNotFound{Cid: c}
	case errors.Is(err, ipfs.ErrBadBlock), errors.Is(err, ipfs.ErrTooLarge):
		return s.replaced(c, path)
	default:
		return nil, fmt.Errorf("store: block %s: %w", c, err)
	}
}

// granularity is how old a block's time of last use may be before a read
// renews it: a block that is read all the time costs one change of its inode a
// minute.
const granularity = time.Minute

// renew notes that a block is used, if that was long ago. Without the note the
// block may go too early, which is no reason to fail the read.
func (s *Store) renew(path string, used time.Time) {
	if now := s.opts.Now(); now.Sub(used) >= granularity {
		_ = os.Chtimes(path, time.Time{}, now)
	}
}

// replaced looks at a damaged file once more, where nobody can change it, and
// removes it.
func (s *Store) replaced(c cid.Cid, path string) ([]byte, error) {
	s.change.Lock()
	defer s.change.Unlock()
	data, _, err := readBlockFile(path)
	if err == nil && ipfs.Verify(c, data) == nil {
		return data, nil
	}
	if err := s.remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("store: damaged block %s: %w", c, err)
	}
	s.log.Warn("a damaged block was removed; it will be fetched again", "cid", c.String(), "path", path)
	return nil, ipld.ErrNotFound{Cid: c}
}

// readBlockFile reads no more than one byte over the largest block. It tells
// when the block was last used.
func readBlockFile(path string) (data []byte, used time.Time, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, used, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, used, err
	}
	data = make([]byte, min(info.Size(), ipfs.MaxBlockSize+1))
	if _, err := io.ReadFull(f, data); err != nil && err != io.ErrUnexpectedEOF {
		return nil, used, err
	}
	return data, info.ModTime(), nil
}

func (s *Store) waiting(c cid.Cid) (blocks.Block, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.pending[string(c.Hash())]
	return b, ok
}

// Get implements [blockstore.Blockstore].
func (s *Store) Get(_ context.Context, c cid.Cid) (blocks.Block, error) {
	if b, ok := s.waiting(c); ok {
		return blocks.NewBlockWithCid(b.RawData(), c)
	}
	data, err := s.read(c)
	if err != nil {
		return nil, err
	}
	return blocks.NewBlockWithCid(data, c)
}

// Has tells whether there is a file; it may be damaged.
func (s *Store) Has(ctx context.Context, c cid.Cid) (bool, error) {
	_, err := s.GetSize(ctx, c)
	if ipld.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// GetSize returns the length of the file. An empty file is a damaged one, for
// the empty block is never asked for (ipfs.Request).
func (s *Store) GetSize(_ context.Context, c cid.Cid) (int, error) {
	if b, ok := s.waiting(c); ok {
		return len(b.RawData()), nil
	}
	info, err := os.Stat(s.Path(c))
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return 0, ipld.ErrNotFound{Cid: c}
	}
	if err != nil {
		return 0, fmt.Errorf("store: block %s: %w", c, err)
	}
	return int(info.Size()), nil
}

// DeleteBlock removes a block, pinned or not.
func (s *Store) DeleteBlock(_ context.Context, c cid.Cid) error {
	s.Flush()
	s.change.Lock()
	defer s.change.Unlock()
	if err := s.remove(s.Path(c)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("store: block %s: %w", c, err)
	}
	return nil
}

// AllKeysChan sends the CIDs of all blocks, with the codec raw.
func (s *Store) AllKeysChan(ctx context.Context) (<-chan cid.Cid, error) {
	s.Flush()
	ch := make(chan cid.Cid)
	go func() {
		defer close(ch)
		err := filepath.WalkDir(s.dir, func(_ string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			if c, err := cid.Decode(d.Name()); err == nil { // else it is not one of ours
				select {
				case ch <- c:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		})
		if err != nil && ctx.Err() == nil {
			s.log.Error("the blocks cannot be listed", "err", err)
		}
	}()
	return ch, nil
}
