package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store/pack"
)

// removedAtOnce is how many CIDs Options.OnRemove is told in one call.
const removedAtOnce = 1024

// pause is for how long no eviction is tried in the background after one that
// could not free enough.
const pause = time.Minute

// saveEvery is how often the times of last use are written, and what single
// blocks left free is given back to the file system.
const saveEvery = time.Minute

// background evicts whenever it is time to.
func (s *Store) background(ctx context.Context) {
	save := time.NewTicker(saveEvery)
	defer save.Stop()
	again := time.NewTimer(0)
	<-again.C
	wake := s.usage.wake
	for {
		select {
		case <-ctx.Done():
			return
		case <-save.C:
			s.tidy(ctx)
			continue
		case <-wake:
		case <-again.C:
		case <-s.unpinned:
		}
		enough, err := s.trim(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.log.Error("no block can be evicted", "err", err)
		}
		wake = s.usage.wake
		if !enough { // and nothing comes of trying at once
			wake = nil
			again.Reset(pause)
		}
	}
}

func (s *Store) tidy(ctx context.Context) {
	if err := s.lock(ctx); err != nil {
		return
	}
	defer s.unlock()
	if err := errors.Join(s.packs.Save(), s.packs.Tidy(ctx)); err != nil && ctx.Err() == nil {
		s.log.Error("the store of blocks cannot be tidied", "err", err)
	}
}

// lock waits for its turn to evict or to pin. The caller unlocks.
func (s *Store) lock(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case s.gc <- struct{}{}:
		return nil
	}
}

func (s *Store) unlock() { <-s.gc }

// trim evicts down to nine tenths of the limit, if more than nineteen
// twentieths are held; it tells whether no more are held then.
func (s *Store) trim(ctx context.Context) (enough bool, err error) {
	if err := s.lock(ctx); err != nil {
		return false, err
	}
	defer s.unlock()
	st := s.usage.stat()
	if !st.high() {
		return true, nil
	}
	freed, err := s.evict(ctx, st.Limit-st.Limit/10, nil)
	s.log.Info("blocks were evicted, those first that were not used for longest", "blocks", freed.Blocks, "bytes", freed.Bytes)
	return !s.usage.stat().high(), err
}

// makeRoom evicts until n bytes more fit, and tells whether they do. Who waits
// for it is importing, and has more to come, so it frees more than that.
func (s *Store) makeRoom(ctx context.Context, n int64) (bool, error) {
	if err := s.lock(ctx); err != nil {
		return false, err
	}
	defer s.unlock()
	st := s.usage.stat()
	if st.Bytes+n <= st.Limit {
		return true, nil // others made it
	}
	if _, err := s.evict(ctx, max(0, st.Limit-max(st.Limit/10, n)), nil); err != nil {
		return false, err
	}
	st = s.usage.stat()
	return st.Bytes+n <= st.Limit, nil
}

// Freed is what an eviction freed.
type Freed struct{ Bytes, Blocks int64 }

// Collect removes blocks that nothing pins, those first that were not used for
// longest, until the store holds no more than target bytes. Those of an import
// under way stay. It calls removed, if not nil, for each, with its CID of codec
// raw and its size; nothing else is evicted or pinned before it returns.
func (s *Store) Collect(ctx context.Context, target int64, removed func(c cid.Cid, size int64)) (Freed, error) {
	if err := s.lock(ctx); err != nil {
		return Freed{}, err
	}
	defer s.unlock()
	return s.evict(ctx, target, removed)
}

// evict is [Store.Collect] for who holds the lock. It looks at all blocks
// twice: first to see from which time on they can stay, then to remove those
// before it. In between it holds eight bytes of each: the second of its last
// use, and its size.
func (s *Store) evict(ctx context.Context, target int64, removed func(cid.Cid, int64)) (Freed, error) {
	pinned, err := s.pins.Set()
	if err != nil {
		return Freed{}, fmt.Errorf("store: nothing is evicted: %w", err)
	}
	st := s.usage.stat()
	now := s.opts.Now()
	stays := func(key uint64, used uint32) bool { return leased(used, now) || pinned.Has(key) }
	ages := make([]uint64, 0, st.Blocks)
	s.packs.Each(func(key uint64, size int64, used uint32) {
		if !stays(key, used) {
			ages = append(ages, uint64(used)<<32|uint64(size))
		}
	})
	last, tie, ok := oldest(ages, st.Bytes-target)
	if !ok {
		return Freed{}, nil
	}
	out := sweep{store: s, removed: removed}
	err = s.packs.Sweep(ctx, func(key uint64, size int64, used uint32) bool {
		at := uint64(used)
		if at > last || at == last && tie <= 0 || stays(key, used) {
			return false
		}
		if at == last {
			tie -= size
		}
		return true
	}, out.gone)
	out.tell()
	if err == nil {
		err = s.packs.Tidy(ctx)
	}
	if err != nil {
		return out.freed, fmt.Errorf("store: evict: %w", err)
	}
	return out.freed, nil
}

// oldest finds the second up to which blocks have to go to free need bytes, and
// how many bytes of the blocks of that very second. ages are sorted in place.
func oldest(ages []uint64, need int64) (last uint64, tie int64, ok bool) {
	slices.Sort(ages)
	for _, a := range ages {
		if need <= 0 {
			break
		}
		if a>>32 != last {
			last, tie = a>>32, 0
		}
		size := int64(a & math.MaxUint32)
		tie += size
		need -= size
		ok = true
	}
	return last, tie, ok
}

// leased tells whether a block was put by an import that may be under way. A
// time still further ahead is that of a clock that was set back.
func leased(used uint32, now time.Time) bool {
	ahead := time.Unix(int64(used), 0).Sub(now)
	return ahead > 0 && ahead < 2*lease
}

// sweep counts what goes, and tells of it.
type sweep struct {
	store   *Store
	removed func(cid.Cid, int64) // may be nil
	freed   Freed
	told    []cid.Cid
}

func (w *sweep) gone(e pack.Entry) {
	w.store.usage.add(-e.Size, -1)
	w.freed.Blocks++
	w.freed.Bytes += e.Size
	c := cid.NewCidV1(cid.Raw, e.Hash)
	if w.removed != nil {
		w.removed(c, e.Size)
	}
	if w.told = append(w.told, c); len(w.told) == removedAtOnce {
		w.tell()
	}
}

func (w *sweep) tell() {
	if tell := w.store.opts.OnRemove; tell != nil && len(w.told) > 0 {
		tell(w.told)
	}
	w.told = nil
}
