// Package buffer lends memory for blocks. A block of 64 KiB that is fetched,
// handed over and stored leaves nothing to keep; made anew each time, blocks
// are nine tenths of what the garbage collector has to do.
package buffer

import pool "github.com/libp2p/go-buffer-pool"

// Get lends n bytes, with anything in them.
func Get(n int) []byte { return pool.Get(n) }

// Put takes back what Get lent, or anything else that nobody uses any more. In
// builds with the race detector it is overwritten, so that who still uses it is
// found out.
func Put(b []byte) {
	if cap(b) == 0 {
		return
	}
	if scribble {
		clear(b[:cap(b)])
	}
	pool.Put(b)
}
