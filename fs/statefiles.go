package fs

import (
	"cmp"
	"context"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/objects"
	"github.com/ipfs-stargz/ipfs-stargz/fs/tree"
)

// State files tell in an image's root how much of each of its lazy layers is here.
// Their names are in the tree, as one more layer on top of the others; what they
// contain is made at each read, and is no object of any layer.
const (
	stateDir    = ".stargz-snapshotter"
	stateSize   = 512 // bytes of each, with spaces at the end: the kernel keeps a file's size
	stateDomain = "ipfs-stargz state file 1\n"

	// statePatience is for how long a read waits for a layer to be counted. When
	// it is over, it tells what was found so far.
	statePatience = 200 * time.Millisecond
)

// stateKey returns the key of a layer's state file. It is a hash as that of an
// object of several chunks, with another beginning: no object can have it.
func stateKey(cid string) cache.Key { return sha512.Sum512_256([]byte(stateDomain + cid)) }

// title is what a layer's state file calls it: its digest, if an image named it, as
// stargz-snapshotter does.
func (l *lazyLayer) title() string { return cmp.Or(l.meta.Digest.String(), l.meta.CID) }

// stateDigest names the names of layers' state files, as the digest of a table of
// contents names a layer's.
func stateDigest(ls []*lazyLayer) digest.Digest {
	var b strings.Builder
	b.WriteString(stateDomain)
	for _, l := range ls {
		fmt.Fprintf(&b, "%s %s\n", l.meta.CID, l.title())
	}
	return digest.FromString(b.String())
}

// addStateFiles adds the names of the layers' state files to their merge, which is
// no draft of a longer run any more.
func addStateFiles(ctx context.Context, m *tree.Merge, ls []*lazyLayer) error {
	entries := []layer.Entry{{Name: stateDir, Type: layer.Dir, Mode: 0o755}}
	for _, l := range ls {
		entries = append(entries, layer.Entry{
			Name: stateDir + "/" + l.title() + ".json", Type: layer.Reg, Mode: 0o444,
			Size: stateSize, Key: l.stateKey,
		})
	}
	return m.Add(ctx, entries)
}

// stateFiles is what state files contain.
type stateFiles struct {
	layers *layers
	// count returns how many bytes of a layer's contents are here, and how many
	// there are.
	count func(ctx context.Context, cid string) (bytes, total int64, ok bool)
}

var _ objects.Live = (*stateFiles)(nil)

// find returns the first layer that is as wanted.
func (s *stateFiles) find(want func(*lazyLayer) bool) *lazyLayer {
	s.layers.mu.RLock()
	list := s.layers.list
	s.layers.mu.RUnlock()
	for _, l := range list {
		if want(l) {
			return l
		}
	}
	return nil
}

func (s *stateFiles) byKey(k cache.Key) *lazyLayer {
	return s.find(func(l *lazyLayer) bool { return l.stateKey == k })
}

// Size implements [objects.Live].
func (s *stateFiles) Size(k cache.Key) (size int64, ok bool) {
	return stateSize, s.byKey(k) != nil
}

// FindID implements [objects.Live].
func (s *stateFiles) FindID(id uint64) (k cache.Key, ok bool) {
	l := s.find(func(l *lazyLayer) bool { return l.stateKey.ID() == id })
	if l == nil {
		return k, false
	}
	return l.stateKey, true
}

// layerState is stargz-snapshotter's form of what is told, though its bytes are
// those of the compressed layer, and ours those of files' contents: of each content
// once, when all of it is here.
type layerState struct {
	Digest         string  `json:"digest"`
	Size           int64   `json:"size"`
	FetchedSize    int64   `json:"fetchedSize"`
	FetchedPercent float64 `json:"fetchedPercent"`
}

// Contents implements [objects.Live].
func (s *stateFiles) Contents(ctx context.Context, k cache.Key) ([]byte, error) {
	l := s.byKey(k)
	if l == nil {
		return nil, objects.ErrNoObject
	}
	ctx, cancel := context.WithTimeout(ctx, statePatience)
	defer cancel()
	bytes, total, ok := s.count(ctx, l.meta.CID)
	if !ok {
		return nil, objects.ErrNoObject // it was forgotten just now
	}
	state := layerState{Digest: l.title(), Size: total, FetchedSize: bytes, FetchedPercent: 100}
	if total > 0 {
		state.FetchedPercent = 100 * float64(bytes) / float64(total)
	}
	b, err := json.Marshal(state)
	if err == nil && len(b) >= stateSize {
		err = fmt.Errorf("state of layer %s takes %d bytes", l.meta.CID, len(b))
	}
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%-*s\n", stateSize-1, b), nil
}
