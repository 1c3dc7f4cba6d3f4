// Package pack keeps many small values, each known by a multihash, in few
// files that are appended to: a file system takes several times as long to
// make a file of 64 KiB as to lengthen one by as much, and, in a directory
// where files were removed lately, thirty times (docs/decisions.md).
//
// A pack is two files. NNNNNNNN.data has the values, each from the start of a
// page of 4 KiB on. NNNNNNNN.index begins with the time of last use of each
// value, four bytes each, for as many values as a pack can have; then comes an
// entry of 96 bytes a value, with its place, its length and its hash. A value
// that is removed loses its entry and its pages (a hole is punched); when a
// pack has lost most of them, the rest is appended to the last pack and its
// files go.
//
// Nothing is synced. After a power cut an entry may be missing or unreadable:
// its value is then not there; or an entry may be there without its bytes: so
// who reads a value verifies it.
//
// Of each value about forty bytes are kept in memory.
package pack

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/multiformats/go-multihash"
)

// ErrNotHeld is returned for a value that is not there.
var ErrNotHeld = errors.New("not held")

// Limits.
const (
	page = 4096
	// MaxValue is how long a value can be, in bytes.
	MaxValue = 64 << 20
	// fullBytes and fullSlots are when a pack gets no more values.
	fullBytes = 64 << 20
	fullSlots = 4096
	// maxOpen is how many packs' data files are kept open.
	maxOpen = 128
)

// Packs is a directory of packs. It is safe for concurrent use by one process.
// Use [Open].
type Packs struct {
	dir  string
	full int64 // bytes of a pack that gets no more values
	log  *slog.Logger

	// saving is held by who writes times of last use or moves packs, appending
	// by who appends, mu by who looks or changes what is in memory; they are
	// taken in this order.
	saving    sync.Mutex
	appending sync.Mutex
	mu        sync.RWMutex
	index     map[uint64]ref
	packs     map[uint32]*pack
	last      *pack // the one that is appended to; nil: none yet
	open      []*pack
	noHoles   bool // the file system cannot punch them; told once
	closed    bool
}

// ref is where a value's entry is. It holds no pointer, which spares the
// garbage collector millions of them.
type ref struct{ pack, slot uint32 }

// pack is one pack. Its slots are only appended to.
type pack struct {
	id    uint32
	slots []slot
	live  int   // slots that have a value
	pages int64 // of these
	end   int64 // of the data, in pages
	data  *os.File
	index *os.File // open while the pack is appended to
	// unsaved: times of last use were changed since they were written.
	unsaved bool
	holes   bool // there is something to punch
}

// slot is a value, as far as it is kept in memory.
type slot struct {
	key   uint64
	first uint32 // page
	size  uint32 // bytes; 0: no value
	used  uint32 // seconds since 1970
}

func (s slot) pages() int64 { return (int64(s.size) + page - 1) / page }

// Entry is a value without its bytes.
type Entry struct {
	Hash multihash.Multihash
	Size int64
	Used time.Time // to the second
}

// Open opens the packs in a directory, and makes it if it is missing. What a
// crash left goes.
func Open(dir string, log *slog.Logger) (*Packs, error) {
	p := &Packs{dir: dir, full: fullBytes, log: log, index: make(map[uint64]ref), packs: make(map[uint32]*pack)}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	if err := p.load(); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	return p, nil
}

// Close writes the times of last use. Nothing can be read or added afterwards.
func (p *Packs) Close() error {
	err := p.Save()
	p.appending.Lock()
	defer p.appending.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.index = nil
	for _, k := range p.packs {
		err = errors.Join(err, k.close())
	}
	p.open = nil
	return err
}

func (k *pack) close() (err error) {
	for _, f := range []**os.File{&k.data, &k.index} {
		if *f != nil {
			err = errors.Join(err, (*f).Close())
			*f = nil
		}
	}
	return err
}

// Len returns the number of values and their bytes.
func (p *Packs) Len() (values int, bytes int64) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, k := range p.packs {
		for _, s := range k.slots {
			bytes += int64(s.size)
		}
		values += k.live
	}
	return values, bytes
}

// find returns a value's slot. mu is held.
func (p *Packs) find(h multihash.Multihash) (r ref, s slot, ok bool) {
	if r, ok = p.index[Key(h)]; ok {
		s = p.packs[r.pack].slots[r.slot]
	}
	return r, s, ok
}

// Size returns the length of a value and when it was last used.
func (p *Packs) Size(h multihash.Multihash) (size int64, used time.Time, ok bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	_, s, ok := p.find(h)
	return int64(s.size), unixTime(s.used), ok
}

// Read returns a value, which may be damaged, and when it was last used. The
// value is in buf, if that is large enough. The error for one that is not there
// is [ErrNotHeld].
func (p *Packs) Read(h multihash.Multihash, buf []byte) (data []byte, used time.Time, err error) {
	for {
		p.mu.RLock()
		r, s, ok := p.find(h)
		if !ok {
			p.mu.RUnlock()
			return nil, used, ErrNotHeld
		}
		f := p.packs[r.pack].data
		p.mu.RUnlock()
		if f == nil {
			if f, err = p.openData(r.pack); err != nil {
				return nil, used, err
			}
		}
		buf = slices.Grow(buf[:0], int(s.size))[:s.size]
		n, err := f.ReadAt(buf, int64(s.first)*page)
		switch {
		case errors.Is(err, os.ErrClosed):
			continue // it moved, or others are open
		case errors.Is(err, io.EOF):
			err = nil // it was cut, which is damage as any other
		}
		return buf[:n], unixTime(s.used), err
	}
}

// openData opens the data of a pack, and closes those of another if there are
// too many. For a pack that went meanwhile the error is [os.ErrClosed].
func (p *Packs) openData(id uint32) (*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.packs[id]
	if k == nil || p.closed {
		return nil, ErrNotHeld
	}
	if k.data != nil {
		return k.data, nil
	}
	f, err := os.OpenFile(p.path(id, dataSuffix), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	p.opened(k, f)
	return f, nil
}

// opened notes that a pack's data are open. mu is held.
func (p *Packs) opened(k *pack, f *os.File) {
	if len(p.open) >= maxOpen {
		for i, o := range p.open {
			if o == p.last {
				continue
			}
			if o.data != nil {
				_ = o.data.Close() // it was read only, or punched
				o.data = nil
			}
			p.open = append(p.open[:i], p.open[i+1:]...)
			break
		}
	}
	k.data = f
	p.open = append(p.open, k)
}

// Use notes that a value was used at a time.
func (p *Packs) Use(h multihash.Multihash, at time.Time) (ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, _, ok := p.find(h)
	if ok {
		k := p.packs[r.pack]
		k.slots[r.slot].used = second(at)
		k.unsaved = true
	}
	return ok
}

// Where tells which bytes of which file are a value.
func (p *Packs) Where(h multihash.Multihash) (file string, offset, size int64, ok bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	r, s, ok := p.find(h)
	if !ok {
		return "", 0, 0, false
	}
	return p.path(r.pack, dataSuffix), int64(s.first) * page, int64(s.size), true
}

const (
	dataSuffix  = ".data"
	indexSuffix = ".index"
)

func (p *Packs) path(id uint32, suffix string) string {
	return filepath.Join(p.dir, fmt.Sprintf("%08x%s", id, suffix))
}
