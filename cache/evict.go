package cache

import (
	"context"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/cache/internal/kernel"
)

const (
	// freshFor is how long an object stays at least. Whoever fetched it is about
	// to open it: the kernel looks for it twice and no more.
	freshFor = 5 * time.Second
	// pause is for how long no eviction is tried after one that could not make
	// enough room.
	pause = freshFor
	// tellEvery is after how many files that went writers who wait try again.
	tellEvery = 32
)

// evictions makes room whenever it is time to.
func (c *Cache) evictions(ctx context.Context) {
	again := time.NewTimer(0)
	defer again.Stop()
	<-again.C
	wake := c.usage.wake
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-again.C:
		}
		enough := c.evict(ctx)
		c.usage.madeRoom(enough)
		wake = c.usage.wake
		if !enough { // and nothing comes of trying at once
			wake = nil
			again.Reset(pause)
		}
	}
}

// evict removes objects until the usage is low, and tells whether it is. First
// go those of no layer, then those of images that are not mounted, then of those
// that are: what is not in memory, and last what is. What anybody has open, or
// mapped, does not go.
func (c *Cache) evict(ctx context.Context) (enough bool) {
	e := eviction{Cache: c, ctx: ctx, need: c.usage.excess()}
	if e.done() {
		return ctx.Err() == nil
	}
	if c.opts.Layers != nil {
		e.layers = c.opts.Layers.ByUse()
	}
	// What is of no layer is found only by looking at everything, so it is
	// looked for only after a layer went, or when nothing else helps.
	searched := c.lostLayer(e.layers)
	if searched {
		e.strays()
	}
	for _, pass := range []struct{ mounted, cached bool }{{false, true}, {true, false}, {true, true}} {
		for i, l := range e.layers {
			if l.Mounted() == pass.mounted {
				e.layer(l, e.layers[i+1:], pass.cached)
			}
		}
	}
	if !searched {
		e.strays()
	}
	if e.lingers && c.opts.Layers != nil {
		c.opts.Layers.Forget(c.Dir())
	}
	if e.files > 0 {
		c.log.Info("objects were evicted, those first whose images were not used for longest", "objects", e.files, "bytes", e.bytes)
	}
	return e.need <= 0
}

// lostLayer reports whether a layer is gone that was there the last time; the
// first time nobody knows. Only the evictor calls it.
func (c *Cache) lostLayer(now []Layer) bool {
	ids := make(map[string]bool, len(now))
	for _, l := range now {
		ids[l.ID()] = true
	}
	lost := c.knownLayers == nil
	for id := range c.knownLayers {
		lost = lost || !ids[id]
	}
	c.knownLayers = ids
	return lost
}

// eviction is one run of [Cache.evict].
type eviction struct {
	*Cache
	ctx    context.Context
	layers []Layer
	need   int64 // bytes to free yet

	files, bytes int64 // that went
	lingers      bool  // whether some of them are referred to still
}

// done reports whether there is nothing more to do.
func (e *eviction) done() bool { return e.need <= 0 || e.ctx.Err() != nil }

// layer removes objects of a layer that are of none of the later ones.
func (e *eviction) layer(l Layer, later []Layer, cached bool) {
	if e.done() {
		return
	}
	for k := range l.Keys() {
		if e.done() {
			return
		}
		if dir := e.where(k); dir != "" && !has(later, k) {
			e.remove(dir, k, cached)
		}
	}
}

func has(layers []Layer, k Key) bool {
	return slices.ContainsFunc(layers, func(l Layer) bool { return l.Has(k) })
}

// where returns the directory that holds something of object k.
func (e *eviction) where(k Key) string {
	var st unix.Stat_t
	for _, dir := range []string{"objects", "partial", "suspect"} {
		if dir == "suspect" && !e.suspects.Load() {
			continue
		}
		if unix.Lstat(e.path(dir, k.String()), &st) == nil {
			return dir
		}
	}
	return ""
}

// strays removes what is of no layer.
func (e *eviction) strays() {
	for _, dir := range []string{"suspect", "partial", "objects"} {
		if e.done() {
			return
		}
		err := e.each(e.ctx, dir, func(k Key) bool {
			if !has(e.layers, k) {
				e.remove(dir, k, true)
			}
			return !e.done()
		})
		if err != nil && e.ctx.Err() == nil {
			e.log.Error("the cache cannot be searched for what is of no layer any more", "error", err)
		}
	}
}

// remove removes what dir holds of object k if nobody uses it; cached tells
// whether also if it is in memory.
func (e *eviction) remove(dir string, k Key, cached bool) {
	evict := e.evictFile
	if dir == "partial" {
		evict = e.evictPartial
	}
	freed, lingers, err := evict(e.path(dir, k.String()), k, cached)
	if err != nil {
		e.log.Error("an object cannot be evicted", "object", k, "error", err)
		return
	}
	if freed == 0 {
		return
	}
	e.need -= freed
	e.bytes += freed
	e.files++
	e.lingers = e.lingers || lingers
	e.usage.count(func(u *Usage) {
		u.Bytes -= freed
		switch dir {
		case "objects":
			u.Objects--
		case "partial":
			u.PartialBytes -= freed
		}
		u.EvictedObjects++
		u.EvictedBytes += freed
	})
	if e.files%tellEvery == 0 {
		e.usage.madeRoom(true)
	}
}

func (e *eviction) evictFile(path string, _ Key, cached bool) (freed int64, lingers bool, err error) {
	e.moving.Lock()
	defer e.moving.Unlock()
	f := e.unused(path, cached)
	if f == nil {
		return 0, false, nil
	}
	defer f.Close()
	if opened(f) {
		return 0, false, nil
	}
	return e.drop(f, path)
}

func (e *eviction) evictPartial(path string, k Key, cached bool) (freed int64, lingers bool, err error) {
	f := e.unused(path, cached)
	if f == nil {
		return 0, false, nil
	}
	defer f.Close()
	// Out of the way first: who waits to open it is not to wait for its removal.
	tmp := e.path("tmp", "evict-"+k.String())
	e.mu.Lock()
	p := e.partials[k]
	if p != nil && p.refs > 0 {
		e.mu.Unlock()
		return 0, false, nil
	}
	if p != nil {
		e.busy(p)
		e.forget(p)
	}
	used := opened(f)
	if !used {
		err = os.Rename(path, tmp)
	}
	e.mu.Unlock()
	if used || err != nil {
		return 0, false, err
	}
	return e.drop(f, tmp)
}

// unused opens a file that can go as far as its times and the page cache tell;
// nil when it stays, or is not there.
func (e *eviction) unused(path string, cached bool) *os.File {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOATIME, 0)
	if err != nil {
		return nil
	}
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || e.isFresh(&st) || !cached && kernel.Cached(f) > 0 {
		f.Close()
		return nil
	}
	return f
}

// isFresh reports whether a file became what it is just now. A time ahead is
// that of a clock that was set back.
func (e *eviction) isFresh(st *unix.Stat_t) bool {
	age := time.Since(time.Unix(st.Ctim.Unix()))
	return age >= 0 && age < e.opts.fresh
}

// opened reports whether anybody else has f open. Where the kernel cannot tell
// it can go: readers keep what they have open.
func opened(f *os.File) bool {
	open, err := kernel.Opened(f)
	return err == nil && open
}

// drop removes the file at path, which is f, and closes f. It returns how many
// bytes that frees, and whether only later, because somebody refers to it still.
func (c *Cache) drop(f *os.File, path string) (freed int64, lingers bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, false, err
	}
	handle, handleErr := kernel.HandleOf(f)
	if err := os.Remove(path); err != nil {
		return 0, false, err
	}
	f.Close() // so that it is not us
	if handleErr == nil {
		lingers = c.usage.watchLingering(handle)
	}
	return st.Blocks * 512, lingers, nil
}
