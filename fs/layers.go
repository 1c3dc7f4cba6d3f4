package fs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// layers are the lazy layers of this node. It is what objects are looked up in.
type layers struct {
	dir  string
	open Opener
	log  *slog.Logger
	adds singleflight.Group // by CID

	mu    sync.RWMutex
	byCID map[string]*lazyLayer
	list  []*lazyLayer // the same in a fixed order; replaced, never changed
	// lies holds claims that turned out to be wrong: a layer whose table of
	// contents names a chunk digest that its own bytes do not have.
	lies map[claim]bool
}

type claim struct {
	cid string
	key cache.Key
}

// lazyLayer is one layer, ready to be read.
type lazyLayer struct {
	meta  layerMeta
	index *layer.Index
	data  *layer.Layer

	users sync.RWMutex // read-held while index or data are used, so that neither is closed then
	gone  bool
}

// layerMeta is what a layer's directory says of itself.
type layerMeta struct {
	CID       string        `json:"cid"`
	TOCDigest digest.Digest `json:"toc_digest"`
	Size      int64         `json:"size"` // of the blob, bytes
	Names     int64         `json:"names"`
	DiskBytes int64         `json:"disk_bytes"`
}

const metaFile = "layer.json"

// openLayers loads what is in dir. A layer that cannot be loaded is removed and
// told of; it is fetched again when it is next added.
func openLayers(dir string, open Opener, log *slog.Logger) (*layers, error) {
	ls := &layers{
		dir: dir, open: open, log: log,
		byCID: map[string]*lazyLayer{}, lies: map[claim]bool{},
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open layers: %w", err)
	}
	for _, e := range entries {
		l, err := ls.load(e.Name())
		if err != nil {
			if !strings.HasPrefix(e.Name(), tmpPrefix) {
				log.Warn("a layer's files are damaged and were removed: remove its image and pull it again", "cid", e.Name(), "error", err)
			}
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return nil, fmt.Errorf("open layers: %w", err)
			}
			continue
		}
		ls.byCID[l.meta.CID] = l
	}
	ls.changed()
	return ls, nil
}

// changed makes the list anew. ls.mu is held, or ls not shared yet.
func (ls *layers) changed() {
	ls.list = slices.SortedFunc(maps.Values(ls.byCID), func(a, b *lazyLayer) int {
		return strings.Compare(a.meta.CID, b.meta.CID)
	})
}

const tmpPrefix = "tmp-"

// load opens the layer whose files are in dir/name.
func (ls *layers) load(name string) (*lazyLayer, error) {
	dir := filepath.Join(ls.dir, name)
	b, err := os.ReadFile(filepath.Join(dir, metaFile))
	if err != nil {
		return nil, err
	}
	l := new(lazyLayer)
	if err := json.Unmarshal(b, &l.meta); err != nil {
		return nil, err
	}
	if l.meta.CID != name {
		return nil, fmt.Errorf("layer in %s says it is %q", dir, l.meta.CID)
	}
	if l.index, err = layer.Load(dir); err != nil {
		return nil, err
	}
	l.data = layer.Open(l.index, &source{cid: l.meta.CID, size: l.meta.Size, open: ls.open})
	return l, nil
}

// add returns the layer with this CID, fetching and verifying its table of
// contents if it is not here.
func (ls *layers) add(ctx context.Context, cid, tocDigest string) (*lazyLayer, error) {
	want := digest.Digest(tocDigest)
	if want != "" {
		if err := want.Validate(); err != nil {
			return nil, fmt.Errorf("TOC digest %q: %w", tocDigest, err)
		}
	}
	if cid == "" || strings.ContainsAny(cid, "/.") {
		return nil, fmt.Errorf("%q is no CID", cid)
	}
	l, ok := ls.get(cid)
	for !ok {
		// Pulls of one image at a time share the fetch. When the one that
		// does it is called off, another takes over.
		v, err, _ := ls.adds.Do(cid+" "+tocDigest, func() (any, error) { return ls.fetch(ctx, cid, want) })
		switch {
		case err == nil:
			l, ok = v.(*lazyLayer), true
		case ctx.Err() != nil || !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded):
			return nil, err
		}
	}
	if want != "" && l.meta.TOCDigest != want {
		return nil, fmt.Errorf("%w: the image says %s, the layer has %s", layer.ErrTOCDigest, want, l.meta.TOCDigest)
	}
	return l, nil
}

func (ls *layers) get(cid string) (*lazyLayer, bool) {
	ls.mu.RLock()
	defer ls.mu.RUnlock()
	l, ok := ls.byCID[cid]
	return l, ok
}

// fetch reads a layer's table of contents and keeps what is needed of it.
func (ls *layers) fetch(ctx context.Context, cid string, want digest.Digest) (*lazyLayer, error) {
	if l, ok := ls.get(cid); ok {
		return l, nil
	}
	src, err := ls.open(ctx, cid)
	if err != nil {
		return nil, err
	}
	toc, err := layer.ReadTOC(ctx, src, want)
	if err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(ls.dir, tmpPrefix)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	if err := layer.Save(tmp, toc); err != nil {
		return nil, err
	}
	meta := layerMeta{CID: cid, TOCDigest: toc.Digest, Size: src.Size(), Names: int64(len(toc.Entries))}
	if meta.DiskBytes, err = filesSize(tmp); err != nil {
		return nil, err
	}
	b, err := json.Marshal(meta)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(tmp, metaFile), b, 0o600); err != nil {
		return nil, err
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if l := ls.byCID[cid]; l != nil {
		return l, nil
	}
	dir := filepath.Join(ls.dir, cid)
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return nil, err
	}
	l, err := ls.load(cid)
	if err != nil {
		return nil, err
	}
	ls.byCID[cid] = l
	ls.changed()
	return l, nil
}

func filesSize(dir string) (total int64, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return 0, err
		}
		total += info.Size()
	}
	return total, nil
}

// retain forgets all layers but these.
func (ls *layers) retain(cids []string) error {
	keep := map[string]bool{}
	for _, c := range cids {
		keep[c] = true
	}
	ls.mu.Lock()
	var gone []*lazyLayer
	for cid, l := range ls.byCID {
		if !keep[cid] {
			gone = append(gone, l)
			delete(ls.byCID, cid)
			maps.DeleteFunc(ls.lies, func(c claim, _ bool) bool { return c.cid == cid })
		}
	}
	ls.changed()
	ls.mu.Unlock()
	var errs []error
	for _, l := range gone {
		errs = append(errs, os.RemoveAll(filepath.Join(ls.dir, l.meta.CID)))
		// A read of this layer that is under way may take as long as the
		// network: whoever ends it closes the files.
		go l.close()
	}
	return errors.Join(errs...)
}

func (ls *layers) close() error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	var errs []error
	for _, l := range ls.byCID {
		errs = append(errs, l.close())
	}
	clear(ls.byCID)
	ls.changed()
	return errors.Join(errs...)
}

func (l *lazyLayer) close() error {
	l.users.Lock()
	defer l.users.Unlock()
	if l.gone {
		return nil
	}
	l.gone = true
	return l.index.Close()
}
