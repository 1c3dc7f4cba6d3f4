package cache

import (
	"context"
	"errors"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/cache/internal/kernel"
)

const (
	// scrubRate is how many bytes a second are read in the background, to verify
	// them.
	scrubRate = 32 << 20
	// sealEvery is how often new objects are sealed, where the file system has
	// fs-verity. Not as they come: sealing waits until the file is on disk.
	sealEvery = 10 * time.Minute
)

// tend verifies what is suspect, and everything when a scrub is due.
func (c *Cache) tend(ctx context.Context) {
	select {
	case <-c.counted:
	case <-ctx.Done():
		return
	}
	runtime.LockOSThread() // for ever: the thread ends with us
	_ = kernel.Idle()      // where that is not known, the rate alone has to do
	t := tender{Cache: c, ctx: ctx, pace: pacer{rate: c.opts.rate}, seals: true}
	scrub := time.NewTimer(t.untilScrub())
	defer scrub.Stop()
	seal := time.NewTicker(sealEvery)
	defer seal.Stop()
	t.settle()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-c.suspected:
			t.settle()
		case <-seal.C:
			t.sealNew()
		case <-scrub.C:
			t.scrub()
			scrub.Reset(t.untilScrub())
		}
	}
}

// tender is the state of [Cache.tend].
type tender struct {
	*Cache
	ctx   context.Context
	pace  pacer
	seals bool // whether the file system has fs-verity, as far as is known
}

func (t *tender) wait(bytes int) error { return t.pace.wait(t.ctx, bytes) }

// untilScrub is when the next scrub is due; it begins the count where nobody did.
func (t *tender) untilScrub() time.Duration {
	const never = 1 << 62
	if t.opts.Scrub == 0 {
		return never
	}
	st, err := os.Stat(t.path("scrubbed"))
	if err != nil {
		t.scrubbed()
		return t.opts.Scrub
	}
	return min(t.opts.Scrub, time.Until(st.ModTime().Add(t.opts.Scrub)))
}

// scrubbed notes the time.
func (t *tender) scrubbed() {
	if err := os.WriteFile(t.path("scrubbed"), nil, 0o600); err != nil {
		t.log.Warn("the time of the last scrub cannot be kept", "error", err)
		return
	}
	now := time.Now()
	_ = os.Chtimes(t.path("scrubbed"), now, now) // writing nothing leaves the time
}

// settle decides about what is suspect. Overlays that know it are told first: to
// them it is the object still.
func (t *tender) settle() {
	if !t.suspects.Load() {
		return
	}
	if t.opts.Layers != nil {
		t.opts.Layers.Forget(t.Dir())
	}
	if err := t.settleAll(t.ctx, t.wait); err != nil && t.ctx.Err() == nil {
		t.log.Error("some objects cannot be verified", "error", err)
	}
}

// scrub reads and verifies every object.
func (t *tender) scrub() {
	t.log.Info("all objects in the cache are being verified")
	damaged := t.visit(func(*os.File) bool { return true })
	if t.ctx.Err() != nil {
		return
	}
	t.scrubbed()
	t.log.Info("all objects in the cache were verified", "damaged", damaged)
}

// sealNew verifies and seals the objects that are not sealed yet.
func (t *tender) sealNew() {
	if t.seals {
		t.visit(func(f *os.File) bool { return !kernel.Sealed(f) })
	}
}

// visit verifies the objects that want to be, and seals those that are good. It
// returns how many were not.
func (t *tender) visit(wants func(*os.File) bool) (damaged int) {
	err := t.each(t.ctx, "objects", func(k Key) bool {
		select {
		case <-t.suspected: // that is more urgent
			t.settle()
		default:
		}
		bad, err := t.object(k, wants)
		if err != nil && t.ctx.Err() == nil {
			t.log.Error("an object cannot be verified", "object", k, "error", err)
		}
		if bad {
			damaged++
		}
		return true
	})
	if err != nil && t.ctx.Err() == nil {
		t.log.Error("the objects cannot be verified", "error", err)
	}
	return damaged
}

// object verifies one object.
func (t *tender) object(k Key, wants func(*os.File) bool) (damaged bool, err error) {
	f, err := kernel.OpenDirect(t.Cache.object(k))
	if err != nil {
		return false, ignoreGone(err)
	}
	defer f.Close()
	if !wants(f) {
		return false, nil
	}
	// Where the page cache cannot be passed by, leave in it what was there.
	cold := kernel.Cached(f) == 0
	var chunks []Chunk
	known := false
	if t.opts.Layers != nil {
		chunks, known = t.opts.Layers.Chunks(k)
	}
	good, err := verify(f, k, chunks, t.wait)
	if cold {
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	if err != nil || !good && !known {
		return false, err // not to be told from one of several chunks
	}
	if good {
		t.seal(f)
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return false, err
		}
		t.usage.count(func(u *Usage) { u.ScrubbedObjects++; u.ScrubbedBytes += st.Blocks * 512 })
		t.withdraw(k) // if somebody changed it meanwhile
		return false, nil
	}
	f.Close()
	return true, t.condemn(k, chunks)
}

// condemn takes an object away that was found damaged, unless another look finds
// it good: a new one may have come in its place.
func (t *tender) condemn(k Key, chunks []Chunk) error {
	t.moving.Lock()
	err := t.setAsideLocked(k)
	t.moving.Unlock()
	if err != nil {
		return ignoreGone(err)
	}
	f, err := kernel.OpenDirect(t.suspect(k))
	if err != nil {
		return ignoreGone(err)
	}
	_, err = t.Cache.settle(k, f, chunks, t.wait)
	return err
}

// seal seals a good object where it can.
func (t *tender) seal(f *os.File) {
	if !t.seals {
		return
	}
	err := t.opts.seal(f)
	switch {
	case err == nil, errors.Is(err, unix.EEXIST): // or is sealed
	case errors.Is(err, unix.ETXTBSY): // somebody has it open for writing: the next time
	default:
		t.seals = false
		t.log.Info("objects are not sealed: the file system has no fs-verity, or it is not enabled", "error", err)
	}
}
