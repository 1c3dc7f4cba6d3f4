package blockstest

import (
	"context"
	"sync"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/buffer"
)

// Memory is an [ipfs.Blocks] that holds its blocks in memory. Use [NewMemory].
type Memory struct {
	mu     sync.Mutex
	blocks map[cid.Cid][]byte
	gets   int // calls of Get
	served int // blocks handed over
}

var _ ipfs.Blocks = (*Memory)(nil)

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{blocks: make(map[cid.Cid][]byte)} }

// Put stores b without a check; it is an [ipfs.PutFunc].
func (m *Memory) Put(_ context.Context, b blocks.Block) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blocks[b.Cid()] = b.RawData()
	return nil
}

// Delete forgets the block of c.
func (m *Memory) Delete(c cid.Cid) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.blocks, c)
}

// Len returns how many blocks are held.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.blocks)
}

// Counts returns how often Get was called, and how many blocks it handed over
// (those with the identity function aside).
func (m *Memory) Counts() (gets, served int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.gets, m.served
}

// Get implements [ipfs.Blocks]. What is not held is unavailable at once.
func (m *Memory) Get(ctx context.Context, w ipfs.Want, fn func(c cid.Cid, data []byte) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	m.gets++
	m.mu.Unlock()
	want, err := ipfs.Request(w.CIDs, fn)
	if err != nil {
		return err
	}
	var missing []cid.Cid
	for _, c := range want {
		if err := ctx.Err(); err != nil {
			return err
		}
		m.mu.Lock()
		data, ok := m.blocks[c]
		m.mu.Unlock()
		if !ok {
			missing = append(missing, c)
			continue
		}
		if err := ipfs.Verify(c, data); err != nil {
			return err
		}
		m.mu.Lock()
		m.served++
		m.mu.Unlock()
		if err := lend(c, data, fn); err != nil {
			return err
		}
	}
	if len(missing) > 0 {
		return &ipfs.UnavailableError{CIDs: missing, Asked: []string{"memory"}, Hint: "put the blocks into the store first"}
	}
	return nil
}

// lend calls fn with a copy of data that is gone afterwards.
func lend(c cid.Cid, data []byte, fn func(c cid.Cid, data []byte) error) error {
	lent := buffer.Get(len(data))
	defer buffer.Put(lent)
	copy(lent, data)
	return fn(c, lent)
}
