// Package buffer lends memory for chunks of files.
//
// The memory is not the Go heap's: it is mapped for the purpose, in huge pages
// where the kernel has them. To touch a small page for the first time is dear,
// most of all in a virtual machine: a MiB of them costs as much as reading it from
// a fast disk, and a huge one a tenth of that. It is given back to the kernel when
// nobody has used any of it for a while.
package buffer

import (
	"math/bits"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Buffer is memory that is lent.
type Buffer struct {
	data  []byte
	class int
}

// Bytes is what was asked for, with anything in it at first.
func (b *Buffer) Bytes() []byte { return b.data }

// Get lends n bytes. They have to be given back: the collector knows nothing of
// them.
func Get(n int64) *Buffer { return shared.get(n) }

// Put takes back what Get lent. Nobody may use it any more.
func Put(b *Buffer) { shared.put(b) }

// shared is everybody's: memory that one user gave back is the next one's.
var shared pool

const (
	hugePage  = 2 << 20
	leastBits = 14 // the smallest buffer is of 16 KiB
	maxClass  = 34
	idleTime  = 10 * time.Second
)

// pool has buffers of powers of two, and of each that nobody uses a list whose
// last one is lent first: it is the one that is still in the processor's cache.
type pool struct {
	mu      sync.Mutex
	free    [maxClass][]*Buffer
	regions [][]byte // as mapped
	used    int      // buffers that are lent
	since   time.Time
	trim    *time.Timer
}

func (p *pool) get(n int64) *Buffer {
	class := max(bits.Len64(uint64(max(n, 1)-1))-leastBits, 0)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free[class]) == 0 {
		p.grow(class)
	}
	last := len(p.free[class]) - 1
	b := p.free[class][last]
	p.free[class] = p.free[class][:last]
	p.used++
	b.data = b.data[:n]
	return b
}

func (p *pool) put(b *Buffer) {
	b.data = b.data[:cap(b.data)]
	if scribble {
		clear(b.data)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free[b.class] = append(p.free[b.class], b)
	if p.used--; p.used > 0 {
		return
	}
	p.since = time.Now()
	if p.trim == nil {
		p.trim = time.AfterFunc(idleTime, p.tidy)
	}
}

// grow maps memory for one buffer of a class, or for as many as a huge page
// holds. p.mu is held.
func (p *pool) grow(class int) {
	size := 1 << (class + leastBits)
	region := max(size, hugePage)
	m, err := unix.Mmap(-1, 0, region+hugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		// There is no address space, or a limit on it. The heap tells so, if it
		// has none either.
		p.free[class] = append(p.free[class], &Buffer{data: make([]byte, size), class: class})
		return
	}
	p.regions = append(p.regions, m)
	at := -uintptr(unsafe.Pointer(unsafe.SliceData(m))) & (hugePage - 1)
	m = m[at:][:region]
	_ = unix.Madvise(m, unix.MADV_HUGEPAGE) // without, they are small
	for ; len(m) > 0; m = m[size:] {
		p.free[class] = append(p.free[class], &Buffer{data: m[:size:size], class: class})
	}
}

// tidy unmaps everything if nobody has used any of it for idleTime.
func (p *pool) tidy() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trim = nil
	if p.used > 0 {
		return // put starts it again
	}
	if left := idleTime - time.Since(p.since); left > 0 {
		p.trim = time.AfterFunc(left, p.tidy)
		return
	}
	clear(p.free[:])
	for _, m := range p.regions {
		_ = unix.Munmap(m)
	}
	p.regions = nil
}
