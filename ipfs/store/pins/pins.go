// Package pins keeps on disk what a store of blocks must not let go: one file
// for each pin, written whole, synced and renamed into place, so that a pin is
// there entirely or not at all.
//
// A pin's file names the DAGs that the pin keeps and holds eight bytes of the
// hash of every block in them. Which blocks are pinned is thus known without
// reading a block, also when one of them is damaged, and costs eight bytes of
// memory a block while somebody asks. Two blocks with the same eight bytes
// (2^-64 for each pair) only make one of them stay longer.
package pins

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
)

// Limits on a pin, whoever asks for it or wrote its file.
const (
	MaxName   = 255     // bytes, as Kubo's
	MaxParts  = 1 << 14 // DAGs of one pin
	MaxBlocks = 1 << 22 // of one pin: 256 GiB in leaves of 64 KiB
)

var (
	// ErrNotPinned says that there is no such pin.
	ErrNotPinned = errors.New("not pinned")
	// ErrDamaged says that a pin's file cannot be read: nobody knows which
	// blocks it keeps, so none may go.
	ErrDamaged = errors.New("damaged pin")
	// ErrLimit says that a pin goes over a limit of this package.
	ErrLimit = errors.New("pin over a limit")
)

// Pin is something that stays.
type Pin struct {
	Root cid.Cid // its name for machines
	Name string  // its name for people; may be ""
	// Parts are the roots of the DAGs that are kept, whole; Root is among
	// them. An image has one for each document and layer.
	Parts  []cid.Cid
	Time   time.Time // of the pinning
	Blocks int       // distinct ones, of all parts
	Bytes  int64     // of these

	// Err is set by [Dir.List] alone, for a pin whose file is damaged: of such
	// a pin only the root is known.
	Err error
}

// Set is the keys of all pinned blocks.
type Set struct{ keys []uint64 } // sorted

// Has tells whether a block with the key is pinned.
func (s Set) Has(key uint64) bool {
	_, ok := slices.BinarySearch(s.keys, key)
	return ok
}

// Dir is the directory of the pins. Its methods may be called by any number of
// goroutines, but for two changes of one pin at once.
type Dir struct{ path string }

// Open opens the directory at path, and makes it if it is missing. What a
// crash left half-written goes.
func Open(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("pins: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(path, tempPrefix+"*"))
	if err != nil {
		return nil, fmt.Errorf("pins: %w", err)
	}
	for _, f := range left {
		if err := os.Remove(f); err != nil {
			return nil, fmt.Errorf("pins: %w", err)
		}
	}
	return &Dir{path}, nil
}

// tempPrefix begins the names of files that are being written; no CID does.
const tempPrefix = ".new-"

// file is the path of a pin's file. CIDs of version 0 and 1 of one DAG are one
// pin.
func (d *Dir) file(root cid.Cid) string {
	return filepath.Join(d.path, normal(root).String())
}

func normal(c cid.Cid) cid.Cid { return cid.NewCidV1(c.Type(), c.Hash()) }

// Write records p and the keys of its blocks, and returns when they are on
// stable storage. The keys are sorted in place, and those that come twice
// dropped; p.Blocks is their number. A pin of the same root is replaced.
func (d *Dir) Write(p Pin, keys []uint64) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("pins: %s: %w", p.Root, err)
		}
	}()
	slices.Sort(keys)
	keys = slices.Compact(keys)
	p.Root, p.Blocks = normal(p.Root), len(keys)
	raw, err := encode(p, keys)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(d.path, tempPrefix) // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), d.file(p.Root))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return d.sync()
}

// Remove takes a pin away. The error for one that is not there is
// [ErrNotPinned].
func (d *Dir) Remove(root cid.Cid) error {
	err := os.Remove(d.file(root))
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotPinned
	}
	if err == nil {
		err = d.sync()
	}
	if err != nil {
		return fmt.Errorf("pins: %s: %w", root, err)
	}
	return nil
}

// sync has what was renamed and removed on stable storage.
func (d *Dir) sync() error {
	f, err := os.Open(d.path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Get returns the pin with this root. Errors wrap [ErrNotPinned] or
// [ErrDamaged], or are those of reading the file.
func (d *Dir) Get(root cid.Cid) (Pin, error) { return d.head(normal(root)) }

// List returns all pins, oldest first.
func (d *Dir) List() ([]Pin, error) {
	roots, err := d.roots()
	if err != nil {
		return nil, err
	}
	list := make([]Pin, 0, len(roots))
	for _, root := range roots {
		p, err := d.head(root)
		if errors.Is(err, ErrNotPinned) {
			continue // it went meanwhile
		}
		if err != nil {
			p = Pin{Root: root, Err: err}
		}
		list = append(list, p)
	}
	slices.SortStableFunc(list, func(a, b Pin) int { return a.Time.Compare(b.Time) })
	return list, nil
}

// Set returns which blocks are pinned. If one pin cannot be read there is no
// set, and the error says what to do.
func (d *Dir) Set() (Set, error) {
	roots, err := d.roots()
	if err != nil {
		return Set{}, err
	}
	var s Set
	for _, root := range roots {
		keys, err := d.keys(root)
		if errors.Is(err, ErrNotPinned) {
			continue
		}
		if err != nil {
			return Set{}, fmt.Errorf("%w; pin ipfs://%s again, or unpin it", err, root)
		}
		s.keys = slices.Grow(s.keys, len(keys)/keyBytes)
		for ; len(keys) > 0; keys = keys[keyBytes:] {
			s.keys = append(s.keys, binary.LittleEndian.Uint64(keys))
		}
	}
	slices.Sort(s.keys)
	s.keys = slices.Compact(s.keys)
	return s, nil
}

func (d *Dir) roots() ([]cid.Cid, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, fmt.Errorf("pins: %w", err)
	}
	var roots []cid.Cid
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			continue
		}
		if c, err := cid.Decode(e.Name()); err == nil { // else it is not one of ours
			roots = append(roots, c)
		}
	}
	return roots, nil
}
