package fs

import (
	"errors"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/mounts"
)

// uses tells the cache what its objects are for, and which of them were of use
// lately. When a layer was last used is the time of its record's file.
type uses struct {
	layers *layers
	trees  *trees
	log    *slog.Logger
}

var _ cache.Layers = (*uses)(nil)

// Chunks implements [cache.Layers].
func (u *uses) Chunks(k cache.Key) ([]cache.Chunk, bool) {
	obj, _, ok := u.layers.Find(k)
	if !ok {
		return nil, false
	}
	chunks := make([]cache.Chunk, len(obj.Chunks))
	for i, c := range obj.Chunks {
		chunks[i] = cache.Chunk{Size: c.Size, Digest: c.Digest}
	}
	return chunks, true
}

// ByUse implements [cache.Layers].
func (u *uses) ByUse() []cache.Layer {
	mounted, err := u.mounted()
	if err != nil {
		u.log.Warn("which layers are mounted cannot be known: all are taken to be", "error", err)
	}
	u.layers.mu.RLock()
	list := u.layers.list
	u.layers.mu.RUnlock()
	used := make([]usedLayer, 0, len(list))
	for _, l := range list {
		var at time.Time // of a layer that is being removed: it goes first
		if st, err := os.Stat(u.record(l.meta.CID)); err == nil {
			at = st.ModTime()
		}
		used = append(used, usedLayer{l, err != nil || mounted[l.meta.CID], at})
	}
	slices.SortStableFunc(used, func(a, b usedLayer) int {
		switch {
		case a.mounted == b.mounted:
			return a.at.Compare(b.at)
		case a.mounted:
			return 1
		default:
			return -1
		}
	})
	layers := make([]cache.Layer, len(used))
	for i, l := range used {
		layers[i] = l
	}
	return layers
}

// Forget implements [cache.Layers].
func (u *uses) Forget(dir string) {
	if err := mounts.Forget(dir); err != nil {
		u.log.Warn("some open file systems did not forget where their files were", "error", err)
	}
}

func (u *uses) record(cid string) string { return filepath.Join(u.layers.dir, cid, metaFile) }

// touch notes that layers are in use now.
func (u *uses) touch(cids []string) {
	now := time.Now()
	for _, cid := range cids {
		if err := os.Chtimes(u.record(cid), now, now); err != nil && !errors.Is(err, fs.ErrNotExist) {
			u.log.Warn("when a layer was last used cannot be kept", "cid", cid, "error", err)
		}
	}
}

// touchMounted notes that what is mounted is in use still; it is called before
// any of it may be unmounted.
func (u *uses) touchMounted() {
	mounted, err := u.mounted()
	if err != nil {
		u.log.Warn("when some layers were last used cannot be kept", "error", err)
		return
	}
	for cid := range mounted {
		u.touch([]string{cid})
	}
}

// mounted returns the CIDs of the layers whose trees are mounted.
func (u *uses) mounted() (map[string]bool, error) {
	dirs, err := u.trees.mounted()
	if err != nil {
		return nil, err
	}
	cids := map[string]bool{}
	for dir := range dirs {
		run, err := u.trees.readOrigin(filepath.Base(filepath.Dir(dir)))
		if err != nil {
			return nil, err
		}
		for _, cid := range run.CIDs {
			cids[cid] = true
		}
	}
	return cids, nil
}

// usedLayer is a layer as the cache wants it.
type usedLayer struct {
	l       *lazyLayer
	mounted bool
	at      time.Time // when it was last used
}

// ID implements [cache.Layer].
func (u usedLayer) ID() string { return u.l.meta.CID }

// Mounted implements [cache.Layer].
func (u usedLayer) Mounted() bool { return u.mounted }

// Has implements [cache.Layer]. A layer that is being closed has nothing any
// more; whoever closes it may wait for a read that takes long, and we do not.
func (u usedLayer) Has(k cache.Key) bool {
	if !u.l.tryHold() {
		return false
	}
	defer u.l.users.RUnlock()
	_, ok := u.l.index.Find(k)
	return ok
}

// Keys implements [cache.Layer].
func (u usedLayer) Keys() iter.Seq[cache.Key] {
	return func(yield func(cache.Key) bool) {
		if !u.l.tryHold() {
			return
		}
		defer u.l.users.RUnlock()
		for o := range u.l.index.All() {
			if !yield(o.Key()) {
				return
			}
		}
	}
}

// tryHold is hold for who does not wait for a layer that is being closed.
func (l *lazyLayer) tryHold() bool {
	if !l.users.TryRLock() {
		return false
	}
	if l.gone {
		l.users.RUnlock()
		return false
	}
	return true
}
