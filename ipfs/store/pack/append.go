package pack

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/multiformats/go-multihash"
)

// Add appends a value, which replaces one of the same hash. It tells how long
// that one was; 0: there was none.
func (p *Packs) Add(h multihash.Multihash, data []byte, used time.Time) (replaced int64, err error) {
	switch {
	case len(data) == 0 || len(data) > MaxValue:
		return 0, fmt.Errorf("pack: a value of %d bytes", len(data))
	case len(h) == 0 || len(h) > maxHash:
		return 0, fmt.Errorf("pack: a hash of %d bytes", len(h))
	}
	p.appending.Lock()
	defer p.appending.Unlock()
	added, err := p.write(h, data, second(used))
	if err != nil {
		return 0, fmt.Errorf("pack: %w", err)
	}
	p.mu.Lock()
	at, old, was := p.find(h)
	if was {
		p.drop(at)
	}
	p.register(added, true)
	p.mu.Unlock()
	if was {
		err = p.forget(at)
	}
	return int64(old.size), err
}

// written is a value that is on disk, and not known yet.
type written struct {
	slot
	at ref
}

// write appends a value to the last pack's files. appending is held, and the
// caller registers the value before it lets go.
func (p *Packs) write(h multihash.Multihash, data []byte, used uint32) (w written, err error) {
	k, err := p.room()
	if err != nil {
		return w, err
	}
	w = written{
		slot: slot{key: Key(h), first: uint32(k.end), size: uint32(len(data)), used: used},
		at:   ref{k.id, uint32(len(k.slots))},
	}
	if _, err := k.data.WriteAt(data, k.end*page); err != nil {
		return w, err
	}
	var e [entrySize]byte
	encode(e[:], w.slot, h)
	_, err = k.index.WriteAt(e[:], entryOffset(len(k.slots)))
	return w, err
}

// register makes a value known, or leaves its slot and its pages to nobody. mu
// is held.
func (p *Packs) register(w written, known bool) {
	k := p.packs[w.at.pack]
	k.end += w.slot.pages()
	if !known {
		k.slots = append(k.slots, slot{})
		k.holes = true
		return
	}
	p.index[w.key] = w.at
	k.slots = append(k.slots, w.slot)
	k.live++
	k.pages += w.slot.pages()
}

func entryOffset(slot int) int64 { return timesSize + int64(slot)*entrySize }

// room returns the pack to append to. appending is held.
func (p *Packs) room() (*pack, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, os.ErrClosed
	}
	k := p.last
	if k != nil && len(k.slots) < fullSlots && k.end*page < p.full {
		return k, nil
	}
	id := uint32(0)
	if k != nil {
		id = k.id + 1
	}
	next := &pack{id: id}
	data, err := os.OpenFile(p.path(id, dataSuffix), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if next.index, err = os.OpenFile(p.path(id, indexSuffix), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
		return nil, errors.Join(err, data.Close(), os.Remove(data.Name()))
	}
	p.packs[id], p.last = next, next
	p.opened(next, data)
	if k != nil {
		_ = k.index.Close() // each write to it was asked for its error
		k.index = nil
		if k.live == 0 {
			if err := p.removeFiles(k); err != nil {
				p.log.Warn("an empty pack of blocks cannot be removed", "err", err)
			}
		}
	}
	return next, nil
}

// removeFiles takes an empty pack away. mu is held.
func (p *Packs) removeFiles(k *pack) error {
	p.open = slices.DeleteFunc(p.open, func(o *pack) bool { return o == k })
	delete(p.packs, k.id)
	err := k.close()
	// The index first: data without one are removed by the next Open.
	return errors.Join(err, os.Remove(p.path(k.id, indexSuffix)), os.Remove(p.path(k.id, dataSuffix)))
}
