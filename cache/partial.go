package cache

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Partial is an object of which some chunks are here. There is at most one for
// a key; everyone who asks shares it, and must release it.
//
// On disk it is one sparse file: the chunks at their offsets, and behind them,
// at the next multiple of 4 KiB, one byte a chunk that is 1 once the chunk was
// written. Being complete is then a truncation and a rename.
type Partial struct {
	c      *Cache
	key    Key
	chunks []Chunk
	offs   []int64 // of the chunks, and the object's size last

	refs int // guarded by c.mu

	mu      sync.RWMutex
	f       *os.File // open for writing until the object is complete
	held    int64    // bytes that the file occupies, as accounted
	state   []chunkState
	missing int
	done    bool // the file is the object now
}

type chunkState uint8

const (
	absent  chunkState = iota
	claimed            // written by an earlier process: verified before it is used
	present
)

// Partial returns the incomplete object k, which consists of these chunks, and
// makes it when there is nothing of it yet. When the object is complete
// already, [Partial.Complete] says so.
func (c *Cache) Partial(k Key, chunks []Chunk) (*Partial, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	// One that is complete may be no object any more: found damaged, or evicted.
	if p := c.partials[k]; p != nil && !(p.Complete() && !c.Has(k)) {
		c.busy(p)
		p.refs++
		return p, nil
	}
	p := &Partial{
		c: c, key: k, chunks: chunks, refs: 1,
		offs:  make([]int64, len(chunks)+1),
		state: make([]chunkState, len(chunks)),
	}
	for i, ch := range chunks {
		p.offs[i+1] = p.offs[i] + ch.Size
	}
	p.missing = len(chunks)
	if err := p.open(); err != nil {
		return nil, fmt.Errorf("open partial object %s: %w", k, err)
	}
	c.partials[k] = p
	return p, nil
}

func (c *Cache) partial(k Key) string { return c.path("partial", k.String()) }

// open takes up the file that an earlier process left, or makes one, or finds
// that the object is complete.
func (p *Partial) open() error {
	if f, err := p.c.OpenObject(p.key); err == nil {
		p.f, p.done, p.missing = f, true, 0
		for i := range p.state {
			p.state[i] = present
		}
		return nil
	}
	f, err := os.OpenFile(p.c.partial(p.key), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return p.c.usage.noSpace(err)
	}
	p.f = f
	if err := p.takeUp(); err != nil {
		f.Close()
		return p.c.usage.noSpace(err)
	}
	return nil
}

// takeUp finds out what there is in the file.
func (p *Partial) takeUp() error {
	var st unix.Stat_t
	if err := unix.Fstat(int(p.f.Fd()), &st); err != nil {
		return err
	}
	p.held = st.Blocks * 512
	switch end := p.flags() + int64(len(p.chunks)); st.Size {
	case end:
		flags := make([]byte, len(p.chunks))
		if _, err := p.f.ReadAt(flags, p.flags()); err != nil {
			return err
		}
		for i, b := range flags {
			if b == 1 {
				p.state[i] = claimed
			}
		}
		return nil
	case p.offs[len(p.chunks)]:
		// Its flags were cut off, and then its process ended: all is there.
		for i := range p.state {
			p.state[i] = claimed
		}
		return p.f.Truncate(end)
	default: // new, or of no use: not the length that it would have
		return errors.Join(p.f.Truncate(0), p.f.Truncate(end), p.account())
	}
}

// account notes what the file occupies. p is not shared, or p.mu is held.
func (p *Partial) account() error {
	var st unix.Stat_t
	if err := unix.Fstat(int(p.f.Fd()), &st); err != nil {
		return err
	}
	p.grow(st.Blocks*512 - p.held)
	return nil
}

func (p *Partial) grow(n int64) {
	p.held += n
	p.c.usage.count(func(u *Usage) { u.Bytes += n; u.PartialBytes += n })
}

// flags is where the chunks' flags are in the file.
func (p *Partial) flags() int64 {
	const block = 4096
	return (p.offs[len(p.chunks)] + block - 1) / block * block
}

// maxIdle is how many partial objects stay open with nobody using them: a
// reader asks for one again at once, and what was verified of it is known as
// long as it is open.
const maxIdle = 64

// Release ends the caller's use of p.
func (p *Partial) Release() {
	c := p.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.refs--; p.refs > 0 {
		return
	}
	if c.closed || p.Complete() {
		c.forget(p)
		return
	}
	c.idle = append(c.idle, p)
	if len(c.idle) > maxIdle {
		c.forget(c.idle[0])
		c.idle = c.idle[1:]
	}
}

// busy takes p from those that nobody uses. c.mu is held.
func (c *Cache) busy(p *Partial) {
	c.idle = slices.DeleteFunc(c.idle, func(q *Partial) bool { return q == p })
}

// forget closes a partial object that nobody uses. c.mu is held.
func (c *Cache) forget(p *Partial) {
	if c.partials[p.key] == p {
		delete(c.partials, p.key)
	}
	p.f.Close()
}

// Complete reports whether every chunk is here, and so the object too.
func (p *Partial) Complete() bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.done
}

// Has reports whether chunk i is here and good.
func (p *Partial) Has(i int) bool {
	p.mu.RLock()
	st := p.state[i]
	good := st == claimed && p.intact(i)
	p.mu.RUnlock()
	if st != claimed {
		return st == present
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state[i] == claimed {
		if !good {
			p.state[i] = absent
			return false
		}
		p.state[i] = present
		p.missing--
		_ = p.finish() // the chunk is here and good all the same
	}
	return p.state[i] == present
}

// intact reads chunk i and verifies it. p.mu is held.
func (p *Partial) intact(i int) bool {
	b := make([]byte, p.chunks[i].Size)
	_, err := p.f.ReadAt(b, p.offs[i])
	return err == nil && sha256.Sum256(b) == p.chunks[i].Digest
}

// Write stores chunk i, whose bytes the caller has verified. With the last
// missing chunk the object becomes complete. The error wraps [ErrFull] when
// there is no room for it, which is told after a tenth of a second at most.
func (p *Partial) Write(i int, data []byte) error {
	if int64(len(data)) != p.chunks[i].Size {
		return fmt.Errorf("chunk %d of object %s has %d bytes, not %d", i, p.key, len(data), p.chunks[i].Size)
	}
	if p.present(i) {
		return nil
	}
	taken := inBlocks(p.chunks[i].Size) + inBlocks(int64(len(p.chunks))) // with the flags, should it be the first
	if err := p.c.usage.take(taken); err != nil {
		return fmt.Errorf("store chunk %d of object %s: %w", i, p.key, err)
	}
	err := p.write(i, data)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.c.usage.give(taken)
	if p.done {
		return nil
	}
	if aerr := p.account(); err == nil {
		err = aerr
	}
	if err != nil {
		return fmt.Errorf("store chunk %d of object %s: %w", i, p.key, p.c.usage.noSpace(err))
	}
	if p.state[i] != present {
		p.state[i] = present
		p.missing--
	}
	return p.finish()
}

func (p *Partial) present(i int) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.state[i] == present
}

// write puts chunk i and then its flag into the file, if it is not there yet.
// The lock is shared by writers, even of the same chunk, whose bytes are the
// same; it keeps finish from cutting the flags off before one of them is
// written, which would make the object longer than it is.
func (p *Partial) write(i int, data []byte) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.state[i] == present {
		return nil
	}
	if _, err := p.f.WriteAt(data, p.offs[i]); err != nil {
		return err
	}
	_, err := p.f.WriteAt([]byte{1}, p.flags()+int64(i))
	return err
}

// finish makes the file the object if nothing is missing. p.mu is held.
func (p *Partial) finish() error {
	if p.missing > 0 || p.done {
		return nil
	}
	if err := p.complete(); err != nil {
		return fmt.Errorf("complete object %s: %w", p.key, err)
	}
	p.done = true
	return nil
}

func (p *Partial) complete() error {
	path := p.c.partial(p.key)
	if err := p.f.Truncate(p.offs[len(p.chunks)]); err != nil {
		return err
	}
	// Nobody has an object open for writing.
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := p.f.Close(); err != nil {
		return errors.Join(err, f.Close())
	}
	p.f = f
	if err := p.c.publish(path, p.key, p.held); err != nil {
		return err
	}
	p.c.usage.count(func(u *Usage) { u.PartialBytes -= p.held })
	p.held = 0
	return nil
}

// ReadAt reads bytes of chunks that are here.
func (p *Partial) ReadAt(b []byte, off int64) (int, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.f.ReadAt(b, off)
}
