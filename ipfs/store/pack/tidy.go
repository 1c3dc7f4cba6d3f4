package pack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// sparse is the part of a pack, 1/sparse, under which what is left of it moves
// to another.
const sparse = 4

// Save writes the times of last use that were changed.
func (p *Packs) Save() error {
	p.saving.Lock()
	defer p.saving.Unlock()
	for _, id := range p.ids() {
		if err := p.saveTimes(id); err != nil {
			return fmt.Errorf("pack: times of last use: %w", err)
		}
	}
	return nil
}

func (p *Packs) saveTimes(id uint32) error {
	p.mu.Lock()
	k := p.packs[id]
	if k == nil || !k.unsaved {
		p.mu.Unlock()
		return nil
	}
	times := make([]byte, 0, 4*len(k.slots))
	for _, s := range k.slots {
		times = binary.LittleEndian.AppendUint32(times, s.used)
	}
	k.unsaved = false
	p.mu.Unlock()
	f, err := os.OpenFile(p.path(id, indexSuffix), os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // the pack is gone
	}
	if err != nil {
		return err
	}
	_, err = f.WriteAt(times, 0)
	return errors.Join(err, f.Close())
}

// Tidy gives the space of removed values back to the file system. What is left
// of a pack that lost most of its values is appended to the last one.
func (p *Packs) Tidy(ctx context.Context) error {
	p.saving.Lock() // no times are written to a pack that goes
	defer p.saving.Unlock()
	for _, id := range p.ids() {
		if err := ctx.Err(); err != nil {
			return err
		}
		p.mu.RLock()
		k := p.packs[id]
		holes := k != nil && k.holes
		most := holes && k != p.last && k.pages*sparse < k.end
		p.mu.RUnlock()
		var err error
		switch {
		case most:
			err = p.move(ctx, id)
		case holes:
			err = p.punch(id)
		}
		if err != nil {
			return fmt.Errorf("pack: %s: %w", p.path(id, dataSuffix), err)
		}
	}
	return nil
}

// ids are those of the packs there are, in order.
func (p *Packs) ids() []uint32 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return slices.Sorted(maps.Keys(p.packs))
}

// move appends the values of a pack to the last one and removes it.
func (p *Packs) move(ctx context.Context, id uint32) error {
	values, err := p.choose(id, func(uint64, int64, uint32) bool { return true })
	if err != nil {
		return err
	}
	var buf []byte
	for _, c := range values {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, _, err := p.Read(c.hash, buf)
		if errors.Is(err, ErrNotHeld) {
			continue
		}
		if err != nil {
			return err
		}
		if err := p.moveOne(c, data); err != nil {
			return err
		}
		buf = data
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if k := p.packs[id]; k != nil && k.live == 0 {
		return p.removeFiles(k)
	}
	return nil
}

// moveOne appends a value again, unless it is elsewhere by now.
func (p *Packs) moveOne(c chosen, data []byte) error {
	p.appending.Lock()
	defer p.appending.Unlock()
	added, err := p.write(c.hash, data, c.used)
	if err != nil {
		return err
	}
	p.mu.Lock()
	at, s, ok := p.find(c.hash)
	stays := ok && at == c.at
	if stays {
		p.drop(at)
		added.slot.used = s.used
		p.packs[added.at.pack].unsaved = true
	}
	p.register(added, stays)
	p.mu.Unlock()
	if !stays {
		return p.forget(added.at)
	}
	return p.forget(at)
}

// punch makes holes where a pack has no values.
func (p *Packs) punch(id uint32) error {
	p.mu.Lock()
	k := p.packs[id]
	if k == nil || p.noHoles {
		p.mu.Unlock()
		return nil
	}
	k.holes = false
	var gaps [][2]int64 // pages: from, to
	from := int64(0)
	for _, s := range k.slots {
		if s.size == 0 {
			continue
		}
		if first := int64(s.first); first > from {
			gaps = append(gaps, [2]int64{from, first})
		}
		from = int64(s.first) + s.pages()
	}
	if from < k.end {
		gaps = append(gaps, [2]int64{from, k.end})
	}
	p.mu.Unlock()
	f, err := os.OpenFile(p.path(id, dataSuffix), os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for _, g := range gaps {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, g[0]*page, (g[1]-g[0])*page)
		if errors.Is(err, unix.EOPNOTSUPP) {
			p.log.Warn("the file system cannot punch holes: evicted blocks free their space only when most of their pack is evicted", "path", p.dir)
			p.mu.Lock()
			p.noHoles = true
			p.mu.Unlock()
			return nil
		}
		if err != nil {
			return fmt.Errorf("punch a hole: %w", err)
		}
	}
	return nil
}
