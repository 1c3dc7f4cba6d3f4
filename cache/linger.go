package cache

import (
	"slices"

	"github.com/ipfs-stargz/ipfs-stargz/cache/internal/kernel"
)

// maxLingering bounds how many removed files are watched; of more the space is
// not told.
const maxLingering = 1 << 14

// watchLingering notes a removed file if anything refers to it still.
func (u *usage) watchLingering(h kernel.Handle) bool {
	_, lives := h.Lives(u.root)
	if !lives {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.lingering) < maxLingering {
		u.lingering = append(u.lingering, h)
	}
	return true
}

// linger asks the kernel which of the removed files there are still, and returns
// how many bytes they occupy. u.mu is held.
func (u *usage) linger() (bytes int64) {
	u.lingering = slices.DeleteFunc(u.lingering, func(h kernel.Handle) bool {
		n, lives := h.Lives(u.root)
		bytes += n
		return !lives
	})
	return bytes
}
