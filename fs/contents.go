package fs

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/objects"
)

var _ objects.Contents = (*layers)(nil)

// holders calls fn with each layer that holds object k, and what it says of
// it, until fn returns false. Claims that proved wrong are left out.
func (ls *layers) holders(k cache.Key, fn func(l *lazyLayer, o layer.ObjectView) bool) {
	ls.mu.RLock()
	list, lies := ls.list, len(ls.lies) > 0
	ls.mu.RUnlock()
	for _, l := range list {
		if lies && ls.lied(l, k) {
			continue
		}
		if !l.hold() {
			continue
		}
		view, ok := l.index.Find(k)
		more := true
		if ok {
			more = fn(l, view)
		}
		l.users.RUnlock()
		if !more {
			return
		}
	}
}

// hold keeps a layer's files open until users.RUnlock, if they are.
func (l *lazyLayer) hold() bool {
	l.users.RLock()
	if l.gone {
		l.users.RUnlock()
		return false
	}
	return true
}

func (ls *layers) lied(l *lazyLayer, k cache.Key) bool {
	ls.mu.RLock()
	defer ls.mu.RUnlock()
	return ls.lies[claim{l.meta.CID, k}]
}

// Find implements [objects.Contents]. Two layers that hold one key can only
// disagree on the size of an object of one chunk, whose key is no more than the
// digest of its contents: then one of them lies, and nothing but the contents
// tells which.
func (ls *layers) Find(k cache.Key) (obj layer.Object, sure, ok bool) {
	sure = true
	ls.holders(k, func(_ *lazyLayer, o layer.ObjectView) bool {
		switch {
		case !ok:
			obj, ok = o.Object(), true
		case o.Size() != obj.Size:
			sure = false
		}
		return sure
	})
	return obj, sure, ok
}

// FindID implements [objects.Contents].
func (ls *layers) FindID(id uint64) (k cache.Key, ok bool) {
	ls.mu.RLock()
	list := ls.list
	ls.mu.RUnlock()
	for _, l := range list {
		if !l.hold() {
			continue
		}
		k, ok = l.index.FindID(id)
		l.users.RUnlock()
		if ok {
			return k, true
		}
	}
	return k, false
}

// ReadChunk implements [objects.Contents]: it asks one layer after the other.
func (ls *layers) ReadChunk(ctx context.Context, obj layer.Object, i int, room func() []byte) error {
	err := fmt.Errorf("object %s: %w", obj.Key, objects.ErrNoObject)
	ls.holders(obj.Key, func(l *lazyLayer, o layer.ObjectView) bool {
		if o.Size() != obj.Size || o.NumChunks() != len(obj.Chunks) {
			return true
		}
		err = l.data.ReadChunkInto(ctx, o.Chunk(i), room)
		if errors.Is(err, layer.ErrChunk) {
			ls.log.Error("a layer's bytes are not what its table of contents says", "cid", l.meta.CID, "object", obj.Key, "error", err)
			ls.mu.Lock()
			ls.lies[claim{l.meta.CID, obj.Key}] = true
			ls.mu.Unlock()
		}
		if err != nil {
			err = fmt.Errorf("layer %s: %w", l.meta.CID, err)
		}
		return err != nil && ctx.Err() == nil
	})
	return err
}

// source is a layer's blob, opened when it is first read: a layer whose files
// are all in the cache asks nothing of the network.
type source struct {
	cid  string
	size int64
	open Opener

	mu  sync.Mutex
	src layer.Source
}

// Size implements [layer.Source].
func (s *source) Size() int64 { return s.size }

// ReadAt implements [layer.Source].
func (s *source) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	src, err := s.get(ctx)
	if err != nil {
		return 0, err
	}
	return src.ReadAt(ctx, p, off)
}

// ReadInto implements [layer.LateSource].
func (s *source) ReadInto(ctx context.Context, n, off int64, room func() []byte) (int, error) {
	src, err := s.get(ctx)
	if err != nil {
		return 0, err
	}
	if late, ok := src.(layer.LateSource); ok {
		return late.ReadInto(ctx, n, off, room)
	}
	return src.ReadAt(ctx, room()[:n], off)
}

func (s *source) get(ctx context.Context) (layer.Source, error) {
	s.mu.Lock()
	src := s.src
	s.mu.Unlock()
	if src != nil {
		return src, nil
	}
	// Not under the lock: whoever waits has a context of its own. Opening
	// twice does no harm.
	src, err := s.open(ctx, s.cid)
	if err != nil {
		return nil, err
	}
	if src.Size() != s.size {
		return nil, fmt.Errorf("layer %s has %d bytes now, and had %d", s.cid, src.Size(), s.size)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.src == nil {
		s.src = src
	}
	return s.src, nil
}
