package pack

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/multiformats/go-multihash"
)

// drop takes a value out of memory, but for its key. mu is held.
func (p *Packs) drop(at ref) slot {
	k := p.packs[at.pack]
	s := k.slots[at.slot]
	k.slots[at.slot] = slot{}
	k.live--
	k.pages -= s.pages()
	k.holes = true
	return s
}

// Remove removes a value, and tells how long it was; 0: there was none.
func (p *Packs) Remove(h multihash.Multihash) (size int64, err error) {
	p.mu.Lock()
	at, s, ok := p.find(h)
	if ok {
		p.drop(at)
		delete(p.index, s.key)
	}
	p.mu.Unlock()
	if !ok {
		return 0, nil
	}
	return int64(s.size), p.forget(at)
}

// forget erases entries of one pack, so that they are not found again.
func (p *Packs) forget(at ...ref) (err error) {
	f, err := os.OpenFile(p.path(at[0].pack, indexSuffix), os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // the pack is gone
	}
	if err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	defer f.Close()
	var none [entrySize]byte
	for _, r := range at {
		if _, err := f.WriteAt(none[:], entryOffset(int(r.slot))); err != nil {
			return fmt.Errorf("pack: %w", err)
		}
	}
	return nil
}

// Each calls fn for each value, of which it has no more than this in memory.
// fn must be quick, and not call p.
func (p *Packs) Each(fn func(key uint64, size int64, used uint32)) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, k := range p.packs {
		for _, s := range k.slots {
			if s.size > 0 {
				fn(s.key, int64(s.size), s.used)
			}
		}
	}
}

// All calls fn for each value there was when it came to its pack.
func (p *Packs) All(ctx context.Context, fn func(Entry) error) error {
	for _, id := range p.ids() {
		found, err := p.choose(id, func(uint64, int64, uint32) bool { return true })
		if err != nil {
			return err
		}
		for _, c := range found {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := fn(c.entry()); err != nil {
				return err
			}
		}
	}
	return nil
}

// Sweep removes values for which doomed is true, unless they are used between
// that and the removal, and calls removed for each that is gone. doomed must be
// quick, and not call p.
func (p *Packs) Sweep(ctx context.Context, doomed func(key uint64, size int64, used uint32) bool, removed func(Entry)) error {
	for _, id := range p.ids() {
		if err := ctx.Err(); err != nil {
			return err
		}
		found, err := p.choose(id, doomed)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			continue
		}
		gone, refs, err := p.sweep(id, found)
		if err == nil && len(refs) > 0 {
			err = p.forget(refs...)
		}
		for _, c := range gone {
			removed(c.entry())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// chosen is a value with its hash.
type chosen struct {
	slot
	at   ref
	hash multihash.Multihash
}

func (c chosen) entry() Entry {
	return Entry{Hash: c.hash, Size: int64(c.size), Used: unixTime(c.used)}
}

// choose returns the values of a pack for which fn is true.
func (p *Packs) choose(id uint32, fn func(key uint64, size int64, used uint32) bool) ([]chosen, error) {
	var out []chosen
	p.mu.RLock()
	if k := p.packs[id]; k != nil {
		for i, s := range k.slots {
			if s.size > 0 && fn(s.key, int64(s.size), s.used) {
				out = append(out, chosen{slot: s, at: ref{id, uint32(i)}})
			}
		}
	}
	p.mu.RUnlock()
	if len(out) == 0 {
		return nil, nil
	}
	raw, err := readIndex(p.path(id, indexSuffix))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // the pack is gone
	}
	if err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	known := out[:0]
	for _, c := range out {
		off := entryOffset(int(c.at.slot))
		if off+entrySize > int64(len(raw)) {
			continue
		}
		if s, h, ok := decode(raw[off:][:entrySize]); ok && s.key == c.key { // else it was removed just now
			c.hash = h
			known = append(known, c)
		}
	}
	return known, nil
}

// sweep takes values of a pack out of memory that are as they were, and the
// pack's files away when it has no other.
func (p *Packs) sweep(id uint32, found []chosen) (gone []chosen, refs []ref, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.packs[id]
	if k == nil {
		return nil, nil, nil
	}
	for _, c := range found {
		if k.slots[c.at.slot] != c.slot {
			continue // it was used, or removed
		}
		p.drop(c.at)
		delete(p.index, c.key)
		gone = append(gone, c)
		refs = append(refs, c.at)
	}
	if k.live == 0 && k != p.last {
		return gone, nil, p.removeFiles(k)
	}
	return gone, refs, nil
}
