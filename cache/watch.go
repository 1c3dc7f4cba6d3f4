package cache

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// watchDir has the kernel tell what happens to the files in dir.
func watchDir(dir string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	const changes = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MODIFY | unix.IN_ATTRIB
	if _, err := unix.InotifyAddWatch(fd, dir, changes|unix.IN_ONLYDIR); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	return os.NewFile(uintptr(fd), "inotify"), nil
}

// watchChanges sets objects aside that somebody else changes, until c.watch is
// closed. Our own objects come by rename, and look as they should.
func (c *Cache) watchChanges(ctx context.Context) {
	select {
	case <-c.counted: // what is counted twice would never leave the books
	case <-ctx.Done():
		return
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := c.watch.Read(buf)
		if err != nil {
			if ctx.Err() == nil {
				c.log.Error("changes that others make to the cache are noticed late: they are not told any more", "error", err)
			}
			return
		}
		c.changed(ctx, buf[:n])
	}
}

// changed looks at the files that inotify(7) tells of.
func (c *Cache) changed(ctx context.Context, events []byte) {
	for len(events) >= unix.SizeofInotifyEvent {
		mask := binary.NativeEndian.Uint32(events[4:])
		size := binary.NativeEndian.Uint32(events[12:])
		name, _, _ := bytes.Cut(events[unix.SizeofInotifyEvent:][:size], []byte{0})
		events = events[unix.SizeofInotifyEvent+size:]
		if mask&unix.IN_Q_OVERFLOW != 0 {
			// Too much happened at once: look at everything.
			if err := c.each(ctx, "objects", func(k Key) bool { c.withdraw(k); return true }); err != nil && ctx.Err() == nil {
				c.log.Error("the cache cannot be searched for changes", "error", err)
			}
		}
		if k, ok := ParseKey(string(name)); ok {
			c.withdraw(k)
		}
	}
}
