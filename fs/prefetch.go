package fs

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/objects"
	"github.com/ipfs-stargz/ipfs-stargz/fs/prefetch"
)

var (
	_ prefetch.Layer   = prefetched{}
	_ prefetch.Objects = ahead{}
)

// resume has the prefetcher go on with the layers that were here at the start,
// the last used first.
func (f *FS) resume() {
	for _, l := range f.uses.ByUse() {
		f.prefetch.Add(prefetched{l.(usedLayer).l})
	}
}

// prefetched is a layer as package prefetch sees it. A layer that is being
// closed has nothing any more.
type prefetched struct{ *lazyLayer }

// CID implements [prefetch.Layer].
func (l prefetched) CID() string { return l.meta.CID }

// Total implements [prefetch.Layer].
func (l prefetched) Total() (objects int, bytes int64) {
	if !l.tryHold() {
		return 0, 0
	}
	defer l.users.RUnlock()
	return l.index.Len(), l.index.Bytes()
}

// Order implements [prefetch.Layer].
func (l prefetched) Order(head bool) (order []int32) {
	if !l.tryHold() {
		return nil
	}
	defer l.users.RUnlock()
	limit := l.index.BlobSize()
	if head {
		limit = l.index.PrefetchSize()
	}
	for o := range l.index.InBlobOrder(limit) {
		order = append(order, int32(o.Number()))
	}
	return order
}

// Object implements [prefetch.Layer].
func (l prefetched) Object(number int32) (o prefetch.Object, ok bool) {
	if !l.tryHold() {
		return o, false
	}
	defer l.users.RUnlock()
	view := l.index.At(int(number))
	return prefetch.Object{Key: view.Key(), Size: view.Size(), Chunks: view.NumChunks()}, true
}

// ahead brings objects into the cache ahead of their readers.
type ahead struct {
	loader *objects.Loader
	*cache.Cache
}

// Prefetch implements [prefetch.Objects].
func (a ahead) Prefetch(ctx context.Context, k cache.Key, chunk int) (kept bool, err error) {
	kept, err = a.loader.PrefetchChunk(ctx, k, chunk)
	// Once every layer that claims the object was found to lie, or is gone,
	// there is nothing to ask again.
	if errors.Is(err, layer.ErrChunk) || errors.Is(err, objects.ErrNoObject) {
		err = fmt.Errorf("%w: %w", prefetch.ErrBroken, err)
	}
	return kept, err
}

// Quiet implements [prefetch.Objects].
func (a ahead) Quiet(ctx context.Context, d time.Duration) error { return a.loader.Quiet(ctx, d) }
