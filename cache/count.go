package cache

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// namesAtOnce is how many names of a directory are held in memory.
const namesAtOnce = 512

// each calls fn with each key in one of the cache's directories, until fn
// returns false or ctx ends. Files may come and go meanwhile.
func (c *Cache) each(ctx context.Context, dir string, fn func(Key) bool) error {
	d, err := os.Open(c.path(dir))
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(namesAtOnce)
		for _, name := range names {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if k, ok := ParseKey(name); ok && !fn(k) {
				return nil
			}
		}
		if len(names) == 0 {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// countAside counts what is partial and what is suspect. Those are few, but for
// the start after a power cut.
func (c *Cache) countAside() error {
	for _, dir := range []string{"partial", "suspect"} {
		err := c.each(context.Background(), dir, func(k Key) bool {
			var st unix.Stat_t
			if unix.Lstat(c.path(dir, k.String()), &st) != nil {
				return true
			}
			c.usage.Bytes += st.Blocks * 512
			if dir == "partial" {
				c.usage.PartialBytes += st.Blocks * 512
			} else {
				c.suspects.Store(true)
			}
			return true
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// countObjects counts the objects that were there at the start, and sets those
// aside that are not as they were left.
func (c *Cache) countObjects(ctx context.Context) {
	defer close(c.counted)
	err := c.each(ctx, "objects", func(k Key) bool {
		var st unix.Stat_t
		if unix.Lstat(c.object(k), &st) == nil && c.usage.found(k, st.Blocks*512) && !genuine(k, &st) {
			c.withdraw(k)
		}
		return true
	})
	if err != nil && ctx.Err() == nil {
		c.log.Error("the cache cannot be counted, and may grow over its budget", "error", err)
	}
	c.usage.mu.Lock()
	defer c.usage.mu.Unlock()
	c.usage.published = nil
	c.usage.Counted = err == nil
	wakeUp(c.usage.wake)
}

// found counts an object of n bytes, unless it was when it was published.
func (u *usage) found(k Key, n int64) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, ok := u.published[k]; ok {
		return false
	}
	u.Bytes += n
	u.Objects++
	return true
}
