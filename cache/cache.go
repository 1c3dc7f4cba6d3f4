// Package cache keeps the contents of files (objects) that were fetched and
// verified, by [Key], in a directory that the kernel itself reads: overlayfs
// looks a file up there first, so an object that is complete is opened and
// read with no help from us.
//
// Layout below the cache's directory:
//
//	objects/<key>  a complete, verified object; appears by rename
//	partial/<key>  an object of several chunks that are not all here yet
//	suspect/<key>  objects found after a power cut, not trusted until verified
//	tmp/           files being written
//	session        the boot that last wrote here, and whether it ended well
//
// Nothing is synced as it is written. What that can lose is found out
// afterwards: when a machine went down with the cache open, every object is
// set aside as suspect at the next start, and verified when it is next asked
// for; partial objects are verified chunk by chunk after any restart.
package cache

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// ErrClosed is returned by a cache that was closed.
var ErrClosed = errors.New("cache is closed")

// Chunk is the part of an object that is fetched and verified as one.
type Chunk struct {
	Size   int64    // bytes
	Digest [32]byte // SHA-256 of them
}

// Cache is a directory of objects. It is safe for concurrent use.
type Cache struct {
	dir string

	mu       sync.Mutex
	partials map[Key]*Partial // those open
	idle     []*Partial       // those of them that nobody uses, oldest first
	closed   bool
	suspects bool // whether there is anything below suspect/
}

// Open opens the cache in dir, which is made when it is not there. One process
// at a time may have it open; that is for the caller to see to.
func Open(dir string) (*Cache, error) {
	c := &Cache{dir: dir, partials: map[Key]*Partial{}}
	for _, d := range []string{"objects", "partial", "suspect"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("open cache: %w", err)
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, "tmp")); err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o700); err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	if err := c.begin(); err != nil {
		return nil, fmt.Errorf("open cache: %w", err)
	}
	return c, nil
}

// Close marks the cache as ended well. Everything written is synced first, so
// that nothing need be verified after the next boot.
func (c *Cache) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	for _, p := range c.idle {
		c.forget(p)
	}
	c.idle = nil
	return c.end()
}

// Dir is the directory of complete objects, for overlayfs: a data-only layer.
func (c *Cache) Dir() string { return filepath.Join(c.dir, "objects") }

// Has reports whether the object is complete.
func (c *Cache) Has(k Key) bool {
	var st syscall.Stat_t
	return syscall.Stat(c.object(k), &st) == nil
}

// OpenObject opens a complete object for reading. The error is
// [fs.ErrNotExist] when it is not complete.
func (c *Cache) OpenObject(k Key) (*os.File, error) { return os.Open(c.object(k)) }

// Put stores a whole object whose contents the caller has verified.
func (c *Cache) Put(k Key, data []byte) error {
	f, err := os.CreateTemp(filepath.Join(c.dir, "tmp"), "put-")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o444)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = c.publish(f.Name(), k)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("store object %s: %w", k, err)
	}
	return nil
}

// Recover looks for an object that was set aside after a power cut, verifies
// it against its chunks, and makes it an object again if it is whole; it is
// deleted if it is not. It reports whether the object is complete now.
func (c *Cache) Recover(k Key, chunks []Chunk) (bool, error) {
	if !c.suspects {
		return false, nil
	}
	path := filepath.Join(c.dir, "suspect", k.String())
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if !verify(f, chunks) {
		return false, os.Remove(path)
	}
	if err := c.publish(path, k); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err // ErrNotExist: another caller was faster
	}
	return true, nil
}

// verify reports whether f consists of exactly these chunks.
func verify(f *os.File, chunks []Chunk) bool {
	var off int64
	var buf []byte
	for _, ch := range chunks {
		if int64(cap(buf)) < ch.Size {
			buf = make([]byte, ch.Size)
		}
		b := buf[:ch.Size]
		if _, err := f.ReadAt(b, off); err != nil || sha256.Sum256(b) != ch.Digest {
			return false
		}
		off += ch.Size
	}
	st, err := f.Stat()
	return err == nil && st.Size() == off
}

func (c *Cache) object(k Key) string { return filepath.Join(c.dir, "objects", k.String()) }

// publish makes the file at path the object k.
func (c *Cache) publish(path string, k Key) error { return os.Rename(path, c.object(k)) }
