package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/cache/internal/kernel"
)

// withdraw sets an object aside if somebody changed it.
func (c *Cache) withdraw(k Key) {
	c.moving.Lock()
	defer c.moving.Unlock()
	var st unix.Stat_t
	if unix.Lstat(c.object(k), &st) != nil || genuine(k, &st) {
		return // others were faster
	}
	var err error
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		err = c.setAsideLocked(k)
	} else if err = os.RemoveAll(c.object(k)); err == nil {
		c.usage.count(func(u *Usage) { u.Objects--; u.Bytes -= st.Blocks * 512 })
	}
	if err != nil {
		c.log.Error("a changed object cannot be taken out of the cache", "object", k, "error", err)
		return
	}
	c.usage.count(func(u *Usage) { u.Changed++ })
	c.log.Warn("an object in the cache was changed by somebody else, and is verified before it is used again", "object", k)
}

// setAsideLocked makes an object a suspect. c.moving is held.
func (c *Cache) setAsideLocked(k Key) error {
	c.suspects.Store(true)
	var before unix.Stat_t
	if unix.Lstat(c.suspect(k), &before) == nil {
		if err := os.RemoveAll(c.suspect(k)); err != nil {
			return err
		}
	}
	if err := os.Rename(c.object(k), c.suspect(k)); err != nil {
		return err
	}
	c.usage.count(func(u *Usage) { u.Objects--; u.Bytes -= before.Blocks * 512 })
	wakeUp(c.suspected)
	return nil
}

// Recover looks for an object that was set aside, verifies it against its
// chunks, and makes it an object again if it is whole; it is deleted if it is
// not. It reports whether the object is complete now.
func (c *Cache) Recover(k Key, chunks []Chunk) (bool, error) {
	if !c.suspects.Load() {
		return false, nil
	}
	// Through the page cache: it is about to be read.
	f, err := os.OpenFile(c.suspect(k), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, ignoreGone(err)
	}
	return c.settle(k, f, chunks, func(int) error { return nil })
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// settle decides about the suspect k, which is f, and closes f.
func (c *Cache) settle(k Key, f *os.File, chunks []Chunk, pace func(int) error) (bool, error) {
	defer f.Close()
	var before, after, now unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &before); err != nil {
		return false, err
	}
	good, err := verify(f, k, chunks, pace)
	if err != nil {
		return false, err
	}
	if err := unix.Fstat(int(f.Fd()), &after); err != nil {
		return false, err
	}
	c.moving.Lock()
	defer c.moving.Unlock()
	if unix.Lstat(c.suspect(k), &now) != nil || now.Ino != before.Ino {
		return c.Has(k), nil // others were faster
	}
	if good && before.Mtim == after.Mtim && before.Ctim == after.Ctim {
		if err := c.publish(c.suspect(k), k, now.Blocks*512); err != nil {
			return false, fmt.Errorf("recover object %s: %w", k, err)
		}
		return true, nil
	}
	freed, _, err := c.drop(f, c.suspect(k))
	if err != nil {
		return false, fmt.Errorf("remove damaged object %s: %w", k, err)
	}
	c.usage.count(func(u *Usage) { u.Bytes -= freed; u.Damaged++ })
	c.log.Error("an object in the cache was damaged, and was removed: it is fetched again", "object", k)
	return false, nil
}

// settleAll decides about all suspects, one after the other.
func (c *Cache) settleAll(ctx context.Context, pace func(int) error) error {
	if c.opts.Layers == nil || !c.suspects.Load() {
		return nil // whoever asks for them knows what they should be
	}
	var errs error
	err := c.each(ctx, "suspect", func(k Key) bool {
		f, err := kernel.OpenDirect(c.suspect(k))
		if err == nil {
			chunks, _ := c.opts.Layers.Chunks(k)
			_, err = c.settle(k, f, chunks, pace)
		}
		errs = errors.Join(errs, ignoreGone(err))
		return ctx.Err() == nil
	})
	c.noSuspects()
	return errors.Join(err, errs)
}

// noSuspects notes that there are none, if so.
func (c *Cache) noSuspects() {
	c.moving.Lock()
	defer c.moving.Unlock()
	d, err := os.Open(c.path("suspect"))
	if err != nil {
		return
	}
	defer d.Close()
	if _, err := d.Readdirnames(1); errors.Is(err, io.EOF) {
		c.suspects.Store(false)
	}
}
