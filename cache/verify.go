package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// readBytes is how much of a file is read at once. For reads past the page cache
// the place in memory has to be aligned as blocks of the disk are.
const (
	readBytes = 1 << 20
	alignment = 4096
)

var buffers = sync.Pool{New: func() any {
	b := make([]byte, readBytes+alignment)
	skip := -uintptr(unsafe.Pointer(&b[0])) % alignment
	b = b[skip:][:readBytes]
	return &b
}}

// verify reports whether f holds object k, which consists of these chunks; with
// none named, whether it is the object of one chunk with that key. The error
// says that this is not known: f could not be read for a reason that is not its
// own, or pace returned one. pace is called for every few bytes read.
func verify(f *os.File, k Key, chunks []Chunk, pace func(bytes int) error) (good bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return false, err
	}
	if len(chunks) < 2 {
		// Layers can claim a wrong size; the key is the digest of it all.
		chunks = []Chunk{{Size: st.Size, Digest: k}}
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	v := verifier{chunks: chunks}
	for off := int64(0); off < st.Size; {
		n, err := pread(f, *buf, off)
		switch {
		case errors.Is(err, unix.EIO), errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EBADMSG):
			return false, nil // the disk, its file system or fs-verity says that it is damaged
		case err != nil:
			return false, fmt.Errorf("verify object %s: %w", k, err)
		case n == 0 || !v.add((*buf)[:n]):
			return false, nil
		}
		off += int64(n)
		if err := pace(n); err != nil {
			return false, err
		}
	}
	return len(v.chunks) == 0, nil
}

// pread reads from f, also where f was opened past the page cache and its file
// system wants another alignment than ours.
func pread(f *os.File, b []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(int(f.Fd()), b, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EINVAL) {
			if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFL, 0); err != nil {
				return 0, err
			}
			return unix.Pread(int(f.Fd()), b, off)
		}
		return n, err
	}
}

// verifier is given the bytes of an object in order.
type verifier struct {
	chunks []Chunk // those to come
	read   int64   // bytes of the first of them
	hash   hash.Hash
}

// add returns false when the bytes are not those of the chunks.
func (v *verifier) add(b []byte) bool {
	for len(b) > 0 {
		if len(v.chunks) == 0 {
			return false
		}
		if v.hash == nil {
			v.hash = sha256.New()
		}
		c := v.chunks[0]
		n := min(int64(len(b)), c.Size-v.read)
		v.hash.Write(b[:n])
		b = b[n:]
		if v.read += n; v.read < c.Size {
			return true
		}
		if [32]byte(v.hash.Sum(nil)) != c.Digest {
			return false
		}
		v.hash.Reset()
		v.chunks, v.read = v.chunks[1:], 0
	}
	return true
}

// pacer holds reading to a rate.
type pacer struct {
	rate int64 // bytes a second
	next time.Time
}

// wait is called after so many bytes were read. It returns ctx's error.
func (p *pacer) wait(ctx context.Context, bytes int) error {
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(int64(bytes) * int64(time.Second) / p.rate))
	timer := time.NewTimer(time.Until(p.next))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
