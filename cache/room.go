package cache

import "golang.org/x/sys/unix"

// keepFree is how much of the file system is left free by what is only
// prefetched, in percent.
const keepFree = 15

// HasRoom reports whether n bytes fit without anything having to go.
func (c *Cache) HasRoom(n int64) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(c.dir, &st); err != nil {
		return false
	}
	free := int64(st.Bavail)*st.Bsize - n
	return free >= int64(st.Blocks)*st.Bsize*keepFree/100
}
