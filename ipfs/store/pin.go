package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store/pack"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store/pins"
)

// MissingError tells that something is not here whole.
type MissingError struct {
	Root cid.Cid
	CIDs []cid.Cid // some of the blocks that are missing
	N    int       // how many are known to be
}

// Error names some of the blocks.
func (e *MissingError) Error() string {
	return fmt.Sprintf("store: %s is not here whole: %d blocks are missing, among them %s", e.Root, e.N, e.CIDs[0])
}

// maxMissing is how many missing blocks an error names.
const maxMissing = 16

// Pin keeps the DAGs p.Parts, which are all here, until [Store.Unpin]. It
// returns when they and the pin are on stable storage. Time, Blocks and Bytes
// are set here. If anything is missing nothing is pinned, and the error is a
// [*MissingError]. A pin of the same root is replaced.
func (s *Store) Pin(ctx context.Context, p pins.Pin) (pins.Pin, error) {
	// Nothing is evicted between the look and the record.
	if err := s.lock(ctx); err != nil {
		return p, err
	}
	defer s.unlock()
	m := measure{store: s, now: s.opts.Now()}
	if err := m.walk(ctx, p.Parts); err != nil {
		return p, fmt.Errorf("store: pin %s: %w", p.Root, err)
	}
	if m.missing > 0 {
		return p, &MissingError{Root: p.Root, CIDs: m.some, N: m.missing}
	}
	if err := s.Sync(); err != nil {
		return p, err
	}
	keys := m.distinct()
	p.Time, p.Blocks, p.Bytes = m.now, len(keys), m.bytes
	if err := s.pins.Write(p, keys); err != nil {
		return p, fmt.Errorf("store: pin: %w", err)
	}
	if s.opts.OnPin != nil {
		s.opts.OnPin(p)
	}
	return p, nil
}

// Unpin lets go what only this pin keeps. The error for a root that is not
// pinned wraps [pins.ErrNotPinned].
func (s *Store) Unpin(ctx context.Context, root cid.Cid) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	if err := s.pins.Remove(root); err != nil {
		return fmt.Errorf("store: unpin: %w", err)
	}
	select {
	case s.unpinned <- struct{}{}:
	default:
	}
	return nil
}

// Pins returns all pins, oldest first. One whose file is damaged has Err set.
func (s *Store) Pins(ctx context.Context) ([]pins.Pin, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return s.pins.List()
}

// Held tells how many bytes of a pin's blocks are here: all of them, unless
// some turned out to be damaged.
func (s *Store) Held(ctx context.Context, p pins.Pin) (int64, error) {
	m := measure{store: s}
	if err := m.walk(ctx, p.Parts); err != nil {
		return 0, fmt.Errorf("store: %s: %w", p.Root, err)
	}
	m.distinct()
	return m.bytes, nil
}

// measure finds the blocks of DAGs, as far as they are here.
type measure struct {
	store *Store
	now   time.Time // if not zero, leases end now

	blocks  []measured
	bytes   int64 // of distinct blocks; set by distinct
	missing int
	some    []cid.Cid // of the missing
}

type measured struct {
	key  uint64
	size uint32
}

func (m *measure) walk(ctx context.Context, parts []cid.Cid) error {
	for _, part := range parts {
		if err := ipfs.Walk(ctx, here{m.store}, part, ipfs.Want{}, m.visit); err != nil {
			return err
		}
	}
	return nil
}

func (m *measure) visit(c cid.Cid, _ []byte) error {
	if _, ok := ipfs.Known(c); ok {
		return nil
	}
	size, used, ok := m.store.packs.Size(c.Hash())
	if !ok {
		if m.missing++; len(m.some) < maxMissing {
			m.some = append(m.some, c)
		}
		return nil
	}
	if len(m.blocks) == pins.MaxBlocks {
		return fmt.Errorf("%w: more than %d blocks", pins.ErrLimit, pins.MaxBlocks)
	}
	m.blocks = append(m.blocks, measured{pack.Key(c.Hash()), uint32(size)})
	if !m.now.IsZero() && used.After(m.now) {
		m.store.packs.Use(c.Hash(), m.now)
	}
	return nil
}

// distinct returns the keys of the blocks, each once, and adds up their sizes.
func (m *measure) distinct() []uint64 {
	slices.SortFunc(m.blocks, func(a, b measured) int {
		switch {
		case a.key < b.key:
			return -1
		case a.key > b.key:
			return 1
		default:
			return 0
		}
	})
	m.blocks = slices.CompactFunc(m.blocks, func(a, b measured) bool { return a.key == b.key })
	keys := make([]uint64, len(m.blocks))
	m.bytes = 0
	for i, b := range m.blocks {
		keys[i] = b.key
		m.bytes += int64(b.size)
	}
	return keys
}

// here is what the store holds, for a walk that goes on where something is
// missing: it hands over no data for that.
type here struct{ store *Store }

// Get implements [ipfs.Blocks], but for its errors.
func (h here) Get(ctx context.Context, w ipfs.Want, fn func(c cid.Cid, data []byte) error) error {
	want, err := ipfs.Request(w.CIDs, fn)
	if err != nil {
		return err
	}
	for _, c := range want {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := h.store.read(c, nil)
		if err != nil && !ipld.IsNotFound(err) {
			return err
		}
		if err := fn(c, data); err != nil {
			return err
		}
	}
	return nil
}

// Local returns the blocks of the store as an [ipfs.Blocks] that asks nobody
// else: what is missing is unavailable at once.
func (s *Store) Local() ipfs.Blocks { return local{s} }

type local struct{ store *Store }

// Get implements [ipfs.Blocks].
func (l local) Get(ctx context.Context, w ipfs.Want, fn func(c cid.Cid, data []byte) error) error {
	var missing []cid.Cid
	err := here(l).Get(ctx, w, func(c cid.Cid, data []byte) error {
		if data == nil {
			if _, ok := ipfs.Known(c); !ok {
				missing = append(missing, c)
				return nil
			}
		}
		return fn(c, data)
	})
	if err == nil && len(missing) > 0 {
		err = &ipfs.UnavailableError{CIDs: missing, Asked: []string{"this node's own store"}, Hint: "import or fetch them first"}
	}
	return err
}
