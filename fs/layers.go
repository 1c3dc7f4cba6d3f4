package fs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/internal/durable"
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

	stateKey cache.Key // of its state file

	users sync.RWMutex // read-held while index or data are used, so that neither is closed then
	gone  bool

	damaged atomic.Bool // its table of contents: the layer is to be fetched again
}

// layerMeta is what a layer's directory says of itself.
type layerMeta struct {
	CID       string        `json:"cid"`
	TOCDigest digest.Digest `json:"toc_digest"`
	Digest    digest.Digest `json:"digest,omitempty"` // of the blob, as the first image said that had it
	Size      int64         `json:"size"`             // of the blob, bytes
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

const tmpPrefix = durable.TmpPrefix

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
	l.stateKey = stateKey(name)
	l.data = layer.Open(l.index, &source{cid: l.meta.CID, size: l.meta.Size, open: ls.open})
	return l, nil
}

// add returns the layer with this CID, fetching and verifying its table of
// contents if it is not here, or damaged. It returns the layer's entries too if
// it had to read them.
func (ls *layers) add(ctx context.Context, cid, tocDigest, blobDigest string) (*lazyLayer, []layer.Entry, error) {
	want := digest.Digest(tocDigest)
	if want != "" {
		if err := want.Validate(); err != nil {
			return nil, nil, fmt.Errorf("TOC digest %q: %w", tocDigest, err)
		}
	}
	if cid == "" || strings.ContainsAny(cid, "/.") {
		return nil, nil, fmt.Errorf("%q is no CID", cid)
	}
	called := digest.Digest(blobDigest)
	if called.Validate() != nil {
		called = "" // it becomes part of a name
	}
	var got fetched
	for ok := false; !ok; {
		// Pulls of one image at a time share the fetch. When the one that
		// does it is called off, another takes over.
		v, err, _ := ls.adds.Do(cid+" "+tocDigest, func() (any, error) { return ls.fetch(ctx, cid, want, called) })
		switch {
		case err == nil:
			got, ok = v.(fetched), true
		case ctx.Err() != nil || !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded):
			return nil, nil, err
		}
	}
	if want != "" && got.layer.meta.TOCDigest != want {
		return nil, nil, fmt.Errorf("%w: the image says %s, the layer has %s", layer.ErrTOCDigest, want, got.layer.meta.TOCDigest)
	}
	return got.layer, got.entries, nil
}

func (ls *layers) get(cid string) (*lazyLayer, bool) {
	ls.mu.RLock()
	defer ls.mu.RUnlock()
	l, ok := ls.byCID[cid]
	return l, ok
}

// entries reads the entries of a layer. Should they be damaged the layer is
// fetched again when it is next added.
func (ls *layers) entries(ctx context.Context, cid string) ([]layer.Entry, error) {
	l, ok := ls.get(cid)
	if !ok {
		return nil, errNotHere(cid)
	}
	entries, err := layer.LoadEntries(ctx, filepath.Join(ls.dir, cid))
	if errors.Is(err, layer.ErrDamaged) || errors.Is(err, fs.ErrNotExist) {
		l.damaged.Store(true)
		ls.log.Warn("a layer's table of contents is damaged: remove its images and pull one again", "cid", cid, "error", err)
		return nil, fmt.Errorf("layer %s: %w (remove its images and pull one again)", cid, errors.Join(layer.ErrDamaged, err))
	}
	return entries, err
}

// run returns the layers with these CIDs.
func (ls *layers) run(cids []string) ([]*lazyLayer, error) {
	run := make([]*lazyLayer, len(cids))
	for i, cid := range cids {
		l, ok := ls.get(cid)
		if !ok {
			return nil, errNotHere(cid)
		}
		run[i] = l
	}
	return run, nil
}

func errNotHere(cid string) error {
	return fmt.Errorf("layer %s is not here (remove the image and pull it again)", cid)
}

// mend fetches those of the layers again that turned out to be damaged.
func (ls *layers) mend(ctx context.Context, cids []string) error {
	for _, cid := range cids {
		l, ok := ls.get(cid)
		if !ok {
			return errNotHere(cid)
		}
		if !l.damaged.Load() {
			continue
		}
		if _, _, err := ls.add(ctx, cid, l.meta.TOCDigest.String(), l.meta.Digest.String()); err != nil {
			return fmt.Errorf("fetch the damaged layer %s again: %w", cid, err)
		}
	}
	return nil
}

// fetched is a layer, and its entries if they were just read.
type fetched struct {
	layer   *lazyLayer
	entries []layer.Entry
}

// fetch reads a layer's table of contents and keeps what is needed of it.
func (ls *layers) fetch(ctx context.Context, cid string, want, called digest.Digest) (fetched, error) {
	if l, ok := ls.get(cid); ok {
		if !l.damaged.Load() {
			return fetched{layer: l}, nil
		}
		called = l.meta.Digest // trees that are mounted have it in their names
	}
	src, err := ls.open(ctx, cid)
	if err != nil {
		return fetched{}, err
	}
	toc, err := layer.ReadTOC(ctx, src, want)
	if err != nil {
		return fetched{}, err
	}
	l, err := ls.keep(layerMeta{CID: cid, Digest: called, Size: src.Size()}, toc)
	return fetched{l, toc.Entries}, err
}

// keep writes what is needed of a layer, and opens it. Of meta it is given what the
// table of contents does not say.
func (ls *layers) keep(meta layerMeta, toc *layer.TOC) (*lazyLayer, error) {
	tmp, err := os.MkdirTemp(ls.dir, tmpPrefix)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	if err := layer.Save(tmp, toc); err != nil {
		return nil, err
	}
	meta.TOCDigest, meta.Names = toc.Digest, int64(len(toc.Entries))
	if meta.DiskBytes, err = filesSize(tmp); err != nil {
		return nil, err
	}
	b, err := json.Marshal(meta)
	if err != nil {
		return nil, err
	}
	err = durable.Write(filepath.Join(tmp, metaFile), func(f *os.File) error {
		_, err := f.Write(b)
		return err
	})
	if err != nil {
		return nil, err
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	cid, old := meta.CID, ls.byCID[meta.CID]
	if old != nil && !old.damaged.Load() {
		return old, nil
	}
	dir := filepath.Join(ls.dir, cid)
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return nil, err
	}
	if err := durable.SyncDir(ls.dir); err != nil {
		return nil, err
	}
	l, err := ls.load(cid)
	if err != nil {
		return nil, err
	}
	ls.byCID[cid] = l
	ls.changed()
	if old != nil {
		go old.close() // as in retain
	}
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
