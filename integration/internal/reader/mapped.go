package reader

import (
	"errors"
	"fmt"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// mapped reads ranges of a file through a mapping of it.
func (r *reader) mapped(p *pair) (err error) {
	m, err := unix.Mmap(int(p.got.Fd()), 0, int(p.size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Munmap(m)) }()
	for range 1 + r.random.IntN(8) {
		off := r.random.Int64N(p.size)
		n := int(min(int64(r.length()), p.size-off))
		got, err := r.copyOut(m[off:][:n])
		if err != nil {
			return fmt.Errorf("%d mapped bytes at %d: %w", n, off, err)
		}
		if err := r.same(p, got, off, n); err != nil {
			return fmt.Errorf("mapped: %w", err)
		}
	}
	return nil
}

// copyOut copies mapped memory. What cannot be read is a fault there, and an
// error here.
func (r *reader) copyOut(m []byte) (_ []byte, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if fault := recover(); fault != nil {
			err = fmt.Errorf("fault: %v", fault)
		}
	}()
	if len(r.got) < len(m) {
		r.got = make([]byte, len(m))
	}
	return r.got[:copy(r.got, m)], nil
}
