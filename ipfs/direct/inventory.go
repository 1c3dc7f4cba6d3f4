package direct

import (
	"errors"
	"sync"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// Store has the blocks that are served. Its methods may be called at once by
// many.
type Store interface {
	// View calls fn with a verified block, which is lent to it until it
	// returns. The error for one that is not there wraps [ErrNotHeld].
	View(c cid.Cid, fn func(data []byte) error) error
	// Holds tells whether a block is there, as far as can be seen without
	// reading it.
	Holds(c cid.Cid) bool
	// Leaves returns a file's leaves in order. It asks nobody else: what is not
	// known here is an error.
	Leaves(root cid.Cid) ([]ipfs.Leaf, error)
}

// ErrNotHeld is wrapped by errors about what is not there.
var ErrNotHeld = errors.New("not held here")

// inventory knows which parts of the files that matter now are held here. A
// file matters while somebody watches it or fetches it.
type inventory struct {
	store Store

	mu     sync.Mutex
	files  map[cid.Cid]*shelf
	places map[string][]place // of blocks of these files, by multihash
}

// shelf is one file's. Part 0 of a file is its root, which stands for all inner
// nodes; part i is its leaf i-1.
type shelf struct {
	root  cid.Cid
	users int
	// The leaves in order, and the first part that a block is, by multihash;
	// nil until they are known. Neither is changed after that.
	leaves []ipfs.Leaf
	index  map[string]int

	held    set
	changed chan struct{} // closed, and replaced, when held changes
}

type place struct {
	shelf *shelf
	part  int
}

func newInventory(s Store) *inventory {
	return &inventory{store: s, files: make(map[cid.Cid]*shelf), places: make(map[string][]place)}
}

// open returns the shelf of a file, which release gives back. Of a file that
// is not known here the parts are not known either, until it is opened again
// when they are.
func (v *inventory) open(root cid.Cid) *shelf {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.files[root]
	if s == nil {
		s = &shelf{root: root, changed: make(chan struct{})}
		v.files[root] = s
	}
	s.users++
	if s.leaves == nil {
		v.load(s)
	}
	return s
}

func (v *inventory) release(s *shelf) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s.users--; s.users > 0 {
		return
	}
	delete(v.files, s.root)
	for key := range s.index {
		v.forget(key, s)
	}
	v.forget(hash(s.root), s)
}

// forget takes the places of a block in s out.
func (v *inventory) forget(key string, s *shelf) {
	kept := v.places[key][:0]
	for _, p := range v.places[key] {
		if p.shelf != s {
			kept = append(kept, p)
		}
	}
	if len(kept) == 0 {
		delete(v.places, key)
	} else {
		v.places[key] = kept
	}
}

// load looks up the parts of a file and which are held. v.mu is held: nothing
// is added or removed unseen meanwhile.
func (v *inventory) load(s *shelf) {
	v.forget(hash(s.root), s)
	v.put(s, s.root, 0)
	defer s.change()
	leaves, err := v.store.Leaves(s.root)
	if err != nil {
		return // not known, or damaged: then it is as if none were held
	}
	s.leaves = leaves
	s.index = make(map[string]int, len(leaves))
	for i, l := range leaves {
		if _, twice := s.index[hash(l.CID)]; !twice {
			s.index[hash(l.CID)] = i + 1
		}
		v.put(s, l.CID, i+1)
	}
}

// put notes that a block is a part of a file, and whether it is held.
func (v *inventory) put(s *shelf, c cid.Cid, part int) {
	v.places[hash(c)] = append(v.places[hash(c)], place{s, part})
	if v.store.Holds(c) {
		s.held.add(part)
	}
}

// change tells who waits for it that what is held has changed.
func (s *shelf) change() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// added and removed tell what came and went.
func (v *inventory) added(c cid.Cid)   { v.set(c, true) }
func (v *inventory) removed(c cid.Cid) { v.set(c, false) }

func (v *inventory) set(c cid.Cid, held bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, p := range v.places[hash(c)] {
		switch {
		case held && p.shelf.held.add(p.part), !held && p.shelf.held.remove(p.part):
			p.shelf.change()
		}
	}
}

// state returns what is held of a file now, a copy, and what is closed at the
// next change.
func (v *inventory) state(s *shelf) (held set, changed <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return append(set(nil), s.held...), s.changed
}

// leaves returns the leaves of a file, and which part each block is, by
// multihash; nil if they are not known. Neither may be changed.
func (v *inventory) leaves(s *shelf) ([]ipfs.Leaf, map[string]int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return s.leaves, s.index
}

// hash is what a block is known by: its codec says nothing of its bytes.
func hash(c cid.Cid) string { return string(c.Hash()) }
