package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store/pins"
)

// removedAtOnce is how many CIDs Options.OnRemove is told in one call.
const removedAtOnce = 1024

// pause is for how long no eviction is tried in the background after one that
// could not free enough.
const pause = time.Minute

// background counts what there is, then evicts whenever it is time to.
func (s *Store) background(ctx context.Context) {
	s.count(ctx)
	close(s.ready)
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.usage.wake:
		}
		enough, err := s.trim(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.log.Error("no block can be evicted", "err", err)
		}
		if enough {
			continue
		}
		again := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-again.C:
		case <-s.unpinned:
		}
		again.Stop()
	}
}

// count adds up what was there when the store was opened. Each directory is
// counted while no file can come to it or go from it.
func (s *Store) count(ctx context.Context) {
	err := s.eachDir(ctx, func(dir string) error {
		s.change.Lock()
		defer s.change.Unlock()
		var bytes, blocks int64
		err := eachBlock(dir, func(_ cid.Cid, info fs.FileInfo) error {
			bytes += info.Size()
			blocks++
			return nil
		})
		s.usage.add(bytes, blocks)
		s.counted[filepath.Base(dir)] = true
		return err
	})
	if err != nil && ctx.Err() == nil {
		s.log.Error("the blocks cannot be counted; more than the budget may be held", "err", err)
	}
	s.change.Lock()
	s.counted = nil
	s.change.Unlock()
	if st := s.usage.stat(); st.Bytes > st.Limit-st.Limit/20 {
		s.usage.wakeUp()
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
	high := func(st Stat) bool { return st.Bytes > st.Limit-st.Limit/20 }
	st := s.usage.stat()
	if !high(st) {
		return true, nil
	}
	freed, err := s.evict(ctx, st.Limit-st.Limit/10, nil)
	s.log.Info("blocks were evicted, those first that were not used for longest", "blocks", freed.Blocks, "bytes", freed.Bytes)
	return !high(s.usage.stat()), err
}

// makeRoom evicts until n bytes more fit, and tells whether they do. Who waits
// for it is importing, and has more to come, so it frees more than that.
func (s *Store) makeRoom(ctx context.Context, n int64) (bool, error) {
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-s.ready:
	}
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
	select {
	case <-ctx.Done():
		return Freed{}, ctx.Err()
	case <-s.ready:
	}
	s.Flush()
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
	ages := make([]uint64, 0, st.Blocks)
	err = s.eachDir(ctx, func(dir string) error {
		now := s.opts.Now()
		return eachBlock(dir, func(c cid.Cid, info fs.FileInfo) error {
			if !leased(info, now) && !pinned.Has(pins.Key(c.Hash())) {
				ages = append(ages, second(info)<<32|uint64(min(info.Size(), math.MaxUint32)))
			}
			return nil
		})
	})
	if err != nil {
		return Freed{}, fmt.Errorf("store: evict: %w", err)
	}
	last, tie, ok := oldest(ages, st.Bytes-target)
	if !ok {
		return Freed{}, nil
	}
	out := sweep{store: s, removed: removed}
	err = s.eachDir(ctx, func(dir string) error {
		now := s.opts.Now()
		return eachBlock(dir, func(c cid.Cid, info fs.FileInfo) error {
			at := second(info)
			if at > last || at == last && tie <= 0 || leased(info, now) || pinned.Has(pins.Key(c.Hash())) {
				return nil
			}
			if at == last {
				tie -= info.Size()
			}
			return out.remove(c, info)
		})
	})
	out.tell()
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

// second is when a block was last used.
func second(info fs.FileInfo) uint64 {
	return uint64(min(max(info.ModTime().Unix(), 0), math.MaxUint32))
}

// leased tells whether a block was put by an import that may be under way. A
// time still further ahead is that of a clock that was set back.
func leased(info fs.FileInfo, now time.Time) bool {
	ahead := info.ModTime().Sub(now)
	return ahead > 0 && ahead < 2*lease
}

// sweep removes blocks.
type sweep struct {
	store   *Store
	removed func(cid.Cid, int64) // may be nil
	freed   Freed
	told    []cid.Cid
}

// remove removes a block, unless it was of use since it was looked at.
func (w *sweep) remove(c cid.Cid, seen fs.FileInfo) error {
	path := w.store.Path(c)
	w.store.change.Lock()
	info, err := os.Lstat(path)
	if err == nil && info.ModTime().After(seen.ModTime()) {
		w.store.change.Unlock()
		return nil
	}
	if err == nil {
		err = w.store.remove(path)
	}
	w.store.change.Unlock()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	w.freed.Blocks++
	w.freed.Bytes += info.Size()
	if w.removed != nil {
		w.removed(c, info.Size())
	}
	if w.told = append(w.told, c); len(w.told) == removedAtOnce {
		w.tell()
	}
	return nil
}

func (w *sweep) tell() {
	if tell := w.store.opts.OnRemove; tell != nil && len(w.told) > 0 {
		tell(w.told)
	}
	w.told = nil
}

// eachDir calls fn for each directory of blocks.
func (s *Store) eachDir(ctx context.Context, fn func(dir string) error) error {
	dirs, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !d.IsDir() {
			continue
		}
		if err := fn(filepath.Join(s.dir, d.Name())); err != nil {
			return err
		}
	}
	return nil
}

// eachBlock calls fn for each block in a directory. What is no block is passed
// over, as is one that goes meanwhile.
func eachBlock(dir string, fn func(c cid.Cid, info fs.FileInfo) error) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		c, err := cid.Decode(f.Name())
		if err != nil {
			continue
		}
		info, err := f.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := fn(c, info); err != nil {
			return err
		}
	}
	return nil
}
