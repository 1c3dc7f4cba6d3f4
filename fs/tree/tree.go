// Package tree merges the tables of contents of a run of lazy layers into one
// EROFS image that holds names and metadata only: what `ls -lR` of the run
// shows, and nothing of what its files contain.
//
// A regular file with contents carries overlayfs' own metacopy and redirect
// attributes, which name its object in a data-only layer: /<key>. So overlayfs, with the mounted image as a lower layer
// and an object store behind it, serves the run at kernel speed.
//
// The merge must equal what containerd makes of the same layers, so it goes the
// same way, in three steps, each in files of its own:
//
//  1. upper: each layer is applied to an empty directory in memory just as
//     containerd applies its tar to an overlayfs upper directory;
//  2. overlay: the directories are stacked as overlayfs stacks them;
//  3. image: the merged tree is written as EROFS.
//
// The same layers give the same bytes, whatever machine builds the image. A
// layer that containerd would refuse to apply, or that could not be served
// faithfully, is refused with a [*RefusedError]: it has to be unpacked.
package tree

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// Limits of what is accepted in a layer, beyond what the layer's own reader
// has checked.
const (
	maxName     = 255      // bytes of one path component
	maxDepth    = 4096     // components of a path, symbolic links resolved
	maxTarget   = 4095     // bytes of a symbolic link's target: PATH_MAX without its NUL
	maxXattrs   = 64 << 10 // bytes of names and values of one inode's attributes
	maxFileSize = 1 << erofs.MaxFileBits
	// maxImplicit bounds the directories of a run that have no entry: a path of
	// 8 KiB can ask for 4,096 of them.
	maxImplicit = 1 << 19
	// maxInherited bounds the ACLs, in bytes, that the files of a run have from
	// their directory's default ACL and not from their entry.
	maxInherited = 64 << 20
	// maxSteps bounds the directory look-ups made to follow symbolic links and
	// to find the attributes of directories that have no entry: a few seconds of
	// work, where a crafted layer could ask for years.
	maxSteps = 1 << 25
	// minObjectID is the least first 64 bits of a key: the objects' FUSE
	// server takes them as a node number, and keeps the ones below to itself.
	minObjectID = 1024
)

// formatVersion is part of every image's name. It grows with each change of
// what is written for the same layers.
const formatVersion = 2

// Reasons for which a layer is refused, each inside a [*RefusedError].
var (
	ErrEntry    = errors.New("invalid entry")
	ErrParent   = errors.New("path leads through what is no directory")
	ErrLink     = errors.New("hard link to what is not in its layer")
	ErrWhiteout = errors.New("invalid whiteout")
	ErrXattr    = errors.New("invalid extended attribute")
	ErrLimit    = errors.New("over the limit")
	ErrKey      = errors.New("object key does not tell it from others")
	ErrBelow    = errors.New("directory without an entry takes after a normal layer below")
)

// RefusedError says which entry of which layer cannot be in a tree, and why. The
// layer can still be unpacked by containerd, which either succeeds or has its own
// say about what is wrong.
type RefusedError struct {
	Layer int    // index in the run, lowest first
	Path  string // the entry's name in the layer
	Err   error  // wraps one of the reasons above
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("layer %d of the run cannot be lazy and has to be unpacked: %q: %v", e.Layer, e.Path, e.Err)
}

func (e *RefusedError) Unwrap() error { return e.Err }

// Options tells what a run of layers is stacked on.
type Options struct {
	// Below reports whether the merged file system of all that lies below the
	// run has something at a path, clean and relative to its root. Whiteouts of
	// what it has are kept for overlayfs, and so are opaque directories; the
	// others have done their work in the merge. They must not stay: where only
	// the run has their directory, overlayfs lists it as it is, and a whiteout
	// would show as a name that cannot be found.
	//
	// It is asked directory by directory, depth first. Nil means that nothing
	// lies below.
	Below func(path string) (bool, error)
}

// Stats describes an image.
type Stats struct {
	Inodes  int64 // distinct inodes, directories among them
	Names   int64 // names, the root's and those of further hard links among them
	Bytes   int64 // size of the image
	Content int64 // size of the files, each inode counted once
	UUID    [16]byte
}

// Name returns the name of the image of the run whose layers' TOCs have the given
// digests, lowest first, on the directories below, topmost first: 32 hexadecimal
// digits, short because it becomes part of an overlay's options, of which a page
// is all there is. Equal names mean equal images as long as what is in those
// directories does not change.
func Name(tocs []digest.Digest, below []string) string {
	h := sha256.New()
	fmt.Fprintf(h, "ipfs-stargz tree %d\n", formatVersion)
	for _, dir := range below {
		fmt.Fprintf(h, "on %q\n", dir)
	}
	for _, d := range tocs {
		fmt.Fprintf(h, "%s\n", d)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Build merges layers, lowest first and each with its entries in the order of
// its TOC, and writes the image to w: [Merge] at once. Its errors are those of
// [Merge.Add] and [Merge.Write].
func Build(ctx context.Context, w io.WriterAt, layers [][]layer.Entry, opts Options) (Stats, error) {
	m, err := merged(ctx, layers, opts.Below != nil)
	if err != nil {
		return Stats{}, err
	}
	return m.Write(ctx, w, opts)
}

func merged(ctx context.Context, layers [][]layer.Entry, overNormal bool) (*Merge, error) {
	m := NewMerge(overNormal)
	for _, entries := range layers {
		if err := m.Add(ctx, entries); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Merge is a run of layers on the way to its image. It is used by one goroutine
// at a time. After an error it is of no use any more.
type Merge struct {
	ctx        context.Context // of the call that is under way
	overNormal bool
	uppers     []*inode              // root directories of the layers added, lowest first
	keys       map[uint64]*layer.Key // by their first 64 bits
	names      int

	steps     int64 // directory look-ups, against maxSteps
	implicit  int   // directories made without an entry, against maxImplicit
	inherited int   // bytes of ACLs inherited, against maxInherited
}

// NewMerge returns a run of no layers yet, on a normal layer or on nothing.
func NewMerge(overNormal bool) *Merge {
	return &Merge{overNormal: overNormal, keys: make(map[uint64]*layer.Key)}
}

// Names is how many entries the layers added so far have: the memory that m
// takes is about 400 bytes for each.
func (m *Merge) Names() int { return m.names }

// Add adds one more layer on top, its entries in the order of its TOC. It keeps
// entries, and does not modify them. It returns a [*RefusedError] for a layer
// that cannot be in the run, and ctx.Err() when ctx ends.
func (m *Merge) Add(ctx context.Context, entries []layer.Entry) error {
	m.ctx = ctx
	m.names += len(entries)
	err := m.apply(entries)
	var refused *RefusedError
	if errors.As(err, &refused) {
		refused.Layer = len(m.uppers)
	}
	return err
}

// Write writes the image of the layers added to w, and uses m up. The superblock
// is written last: what is left behind by an error is no file system. The errors
// are ctx's, opts.Below's and w's.
func (m *Merge) Write(ctx context.Context, w io.WriterAt, opts Options) (Stats, error) {
	root, err := overlay(m.uppers, opts.Below)
	if err != nil {
		return Stats{}, err
	}
	stats, err := writeImage(ctx, w, root)
	if err != nil {
		return Stats{}, fmt.Errorf("write tree: %w", err)
	}
	return stats, nil
}
