// Package store keeps blocks on disk: verified when they are read, because no
// block is synced when it is written.
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

	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// maxPending is how many bytes of blocks may wait to be written. Who brings
// more waits for the disk.
const maxPending = 32 << 20

// Store keeps blocks as files, blocks/<aa>/<CIDv1 of codec raw>, where aa are
// the two characters before the last. A file appears by rename and is not
// synced, so after a crash it can be cut or full of zeros: every read verifies
// the hash, and what does not match is removed and counts as not there, for
// bitswap to fetch again.
//
// A block is known by its multihash; its codec does not matter.
type Store struct {
	dir string // of the blocks
	tmp string
	log *slog.Logger

	// change is held where a file is put into place or taken away, so that a
	// damaged one is never removed after it was replaced.
	change sync.Mutex

	mu      sync.Mutex
	cond    *sync.Cond // something was written, or came to be written
	pending map[string]blocks.Block
	queue   []blocks.Block
	bytes   int // of pending
	closed  bool
	writer  sync.WaitGroup
}

var _ blockstore.Blockstore = (*Store)(nil)

// Open opens the store below dir. What a crash left half-written goes.
func Open(dir string, log *slog.Logger) (*Store, error) {
	s := &Store{
		dir: filepath.Join(dir, "blocks"), tmp: filepath.Join(dir, "tmp"), log: log,
		pending: make(map[string]blocks.Block),
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
	s.writer.Go(s.write)
	return s, nil
}

// Close writes what is pending.
func (s *Store) Close() {
	s.mu.Lock()
	s.closed = true
	s.cond.Broadcast()
	s.mu.Unlock()
	s.writer.Wait()
}

// Path is the file of a block, whether it is there or not.
func (s *Store) Path(c cid.Cid) string {
	name := cid.NewCidV1(cid.Raw, c.Hash()).String()
	return filepath.Join(s.dir, name[len(name)-3:len(name)-1], name)
}

// PutLater stores a verified block soon: it can be read at once. When too much
// is pending it waits. A block that cannot be written is logged and forgotten:
// a full disk is no reason to fail a read.
func (s *Store) PutLater(b blocks.Block) {
	key := string(b.Cid().Hash())
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.bytes > maxPending && !s.closed {
		s.cond.Wait()
	}
	if _, ok := s.pending[key]; ok || s.closed {
		return
	}
	s.pending[key] = b
	s.queue = append(s.queue, b)
	s.bytes += len(b.RawData())
	s.cond.Broadcast()
}

// write is the goroutine behind PutLater.
func (s *Store) write() {
	failing := false
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for len(s.queue) == 0 {
			if s.closed {
				return
			}
			s.cond.Wait()
		}
		b := s.queue[0]
		s.queue[0] = nil
		s.queue = s.queue[1:]
		s.mu.Unlock()
		err := s.put(b)
		if err != nil && !failing {
			s.log.Error("fetched blocks cannot be kept; reading goes on without", "err", err)
		}
		failing = err != nil
		s.mu.Lock()
		delete(s.pending, string(b.Cid().Hash()))
		s.bytes -= len(b.RawData())
		s.cond.Broadcast()
	}
}

// Flush waits until nothing is pending.
func (s *Store) Flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.pending) > 0 {
		s.cond.Wait()
	}
}

// Sync has everything on stable storage. One sync of the file system costs far
// less than one for each block.
func (s *Store) Sync() error {
	s.Flush()
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

// put writes one block, unless it is there already and whole.
func (s *Store) put(b blocks.Block) (err error) {
	if _, err := s.read(b.Cid()); err == nil {
		return nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("store: block %s: %w", b.Cid(), err)
		}
	}()
	path := s.Path(b.Cid())
	f, err := os.CreateTemp(s.tmp, "") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b.RawData())
	if err = errors.Join(err, f.Close()); err == nil {
		err = s.rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func (s *Store) rename(from, to string) error {
	s.change.Lock()
	defer s.change.Unlock()
	err := os.Rename(from, to)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Mkdir(filepath.Dir(to), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Rename(from, to)
}

// read returns a block that was verified just now. If the file is damaged it
// is removed. The error for a block that is not there is [ipld.ErrNotFound].
func (s *Store) read(c cid.Cid) ([]byte, error) {
	path := s.Path(c)
	data, err := readBlockFile(path)
	if err == nil {
		err = ipfs.Verify(c, data)
	}
	switch {
	case err == nil:
		return data, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, ipld.ErrNotFound{Cid: c}
	case errors.Is(err, ipfs.ErrBadBlock), errors.Is(err, ipfs.ErrTooLarge):
		return s.replaced(c, path)
	default:
		return nil, fmt.Errorf("store: block %s: %w", c, err)
	}
}

// replaced looks at a damaged file once more, where nobody can change it, and
// removes it.
func (s *Store) replaced(c cid.Cid, path string) ([]byte, error) {
	s.change.Lock()
	defer s.change.Unlock()
	data, err := readBlockFile(path)
	if err == nil && ipfs.Verify(c, data) == nil {
		return data, nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("store: damaged block %s: %w", c, err)
	}
	s.log.Warn("a damaged block was removed; it will be fetched again", "cid", c.String(), "path", path)
	return nil, ipld.ErrNotFound{Cid: c}
}

// readBlockFile reads no more than one byte over the largest block.
func readBlockFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data := make([]byte, min(info.Size(), ipfs.MaxBlockSize+1))
	if _, err := io.ReadFull(f, data); err != nil && err != io.ErrUnexpectedEOF {
		return nil, err
	}
	return data, nil
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

// Put writes a block that the caller has verified.
func (s *Store) Put(_ context.Context, b blocks.Block) error { return s.put(b) }

// PutMany writes blocks that the caller has verified.
func (s *Store) PutMany(ctx context.Context, bs []blocks.Block) error {
	for _, b := range bs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.put(b); err != nil {
			return err
		}
	}
	return nil
}

// DeleteBlock removes a block.
func (s *Store) DeleteBlock(_ context.Context, c cid.Cid) error {
	s.Flush()
	s.change.Lock()
	defer s.change.Unlock()
	if err := os.Remove(s.Path(c)); err != nil && !errors.Is(err, fs.ErrNotExist) {
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
