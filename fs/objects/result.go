package objects

import "github.com/hanwen/go-fuse/v2/fuse"

// result is the answer to a read, which goes to the kernel from where it lies.
type result struct{ lent Lent }

// Bytes implements [fuse.ReadResult].
func (r *result) Bytes([]byte) ([]byte, fuse.Status) { return r.lent.Bytes(), fuse.OK }

// Slices has go-fuse write at once; for a result without it it tries splice
// first, for nothing.
func (r *result) Slices() ([][]byte, fuse.Status) { return [][]byte{r.lent.Bytes()}, fuse.OK }

// Size implements [fuse.ReadResult].
func (r *result) Size() int { return len(r.lent.Bytes()) }

// Done implements [fuse.ReadResult].
func (r *result) Done() { r.lent.Release() }
