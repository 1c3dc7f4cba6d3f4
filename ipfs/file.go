package ipfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"

	"github.com/ipfs/go-cid"
)

// File reads ranges of a UnixFS file. It knows where each leaf begins and what
// its CID is, so a range costs one parallel Get of exactly the leaves that
// cover it, however deep the tree. It is safe for concurrent use.
type File struct {
	blocks  Blocks
	root    cid.Cid
	table   *table
	saveErr error
}

// Leaf is one part of a file whose bytes are those of one block.
type Leaf struct {
	Offset int64 // in the file, bytes
	Size   int64 // bytes of the file
	CID    cid.Cid
}

// OpenFile opens the UnixFS file with the given root: raw or dag-pb leaves,
// balanced or not, or a single block. Its table of leaves is kept in dir, in
// one file, from the first time on; later no block is fetched to open it. A
// damaged table is made again. Without a dir the table is kept in memory alone.
//
// A file over maxSize bytes is refused ([ErrTooLarge]), as is what is no file
// ([ErrNotFile]) or breaks a rule or a limit ([ErrMalformed]). Other errors are
// those of blocks, and of reading dir.
func OpenFile(ctx context.Context, blocks Blocks, dir string, root cid.Cid, maxSize int64) (*File, error) {
	if err := CheckCID(root); err != nil {
		return nil, err
	}
	f := &File{blocks: blocks, root: root}
	if dir != "" {
		var err error
		f.table, err = loadTable(dir, root)
		if err != nil && !errors.Is(err, errTable) && ignoreMissing(err) != nil {
			return nil, fmt.Errorf("ipfs: leaf table: %w", err)
		}
	}
	if f.table == nil {
		leaves, err := walk(ctx, blocks, root, maxSize)
		if err != nil {
			return nil, err
		}
		f.table = newTable(root, leaves)
		if dir != "" {
			f.saveErr = f.table.save(dir, root)
		}
	}
	if f.Size() > maxSize {
		return nil, fmt.Errorf("ipfs: file %s of %d bytes is %w: at most %d are expected", root, f.Size(), ErrTooLarge, maxSize)
	}
	return f, nil
}

// SaveError tells why the table could not be kept on disk, for example because
// the disk is full. The file can be read all the same.
func (f *File) SaveError() error { return f.saveErr }

// Root returns the CID of the file.
func (f *File) Root() cid.Cid { return f.root }

// Size returns the length of the file in bytes.
func (f *File) Size() int64 { return f.table.size() }

// NumLeaves returns how many leaves the file has.
func (f *File) NumLeaves() int { return f.table.n }

// Leaves yields the leaves in the order of the file.
func (f *File) Leaves() iter.Seq[Leaf] {
	return func(yield func(Leaf) bool) {
		for i := range f.table.n {
			c, err := f.table.cid(i)
			if err != nil {
				return // not reached: every CID was parsed when the table was
			}
			if start := f.table.start(i); !yield(Leaf{Offset: start, Size: f.table.end(i) - start, CID: c}) {
				return
			}
		}
	}
}

// ReadAt fills p with the bytes from off, with the contract of [io.ReaderAt]:
// fewer than len(p) bytes come only with an error, [io.EOF] at the file's end.
// Errors are those of [Blocks], or [ErrMalformed] for a leaf whose length is
// not what the tree says. After an error other than io.EOF n is 0, and p may
// have been written to.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	return f.ReadInto(ctx, int64(len(p)), off, func() []byte { return p }, Want{})
}

// ReadInto is [File.ReadAt] of n bytes into what room returns, as how says: its
// Root and CIDs are set here. room is asked once, when there is something to put
// there, so that who waits for a peer holds no memory for it.
func (f *File) ReadInto(ctx context.Context, n, off int64, room func() []byte, how Want) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("ipfs: file %s: negative offset %d", f.root, off)
	}
	if n == 0 {
		return 0, nil
	}
	if off >= f.Size() {
		return 0, io.EOF
	}
	within := min(n, f.Size()-off)
	how.Root = f.root
	if err := f.read(ctx, within, off, room, how); err != nil {
		return 0, err
	}
	if within < n {
		return int(within), io.EOF
	}
	return int(within), nil
}

// read reads n bytes, all of which are within the file.
func (f *File) read(ctx context.Context, n, off int64, room func() []byte, want Want) error {
	into := sync.OnceValue(func() []byte { return room()[:n] })
	first, last := f.table.at(off), f.table.at(off+n-1)
	if first == last {
		return f.readLeaf(ctx, into, off, first, want)
	}
	return f.readLeaves(ctx, into, off, first, last, want)
}

// readLeaf is readLeaves for one leaf, as most reads are.
func (f *File) readLeaf(ctx context.Context, into func() []byte, off int64, i int, want Want) error {
	c, err := f.leaf(i)
	if err != nil {
		return err
	}
	want.CIDs = []cid.Cid{c}
	return f.blocks.Get(ctx, want, func(c cid.Cid, block []byte) error { return f.fill(into(), off, i, c, block) })
}

// readLeaves fills what into returns, all of which is within the leaves from first
// to last.
func (f *File) readLeaves(ctx context.Context, into func() []byte, off int64, first, last int, want Want) error {
	want.CIDs = make([]cid.Cid, 0, last-first+1)
	// The same leaf can be needed in several places (a run of zeros).
	places := make(map[cid.Cid][]int, last-first+1)
	for i := first; i <= last; i++ {
		c, err := f.leaf(i)
		if err != nil {
			return err
		}
		if places[c] == nil {
			want.CIDs = append(want.CIDs, c)
		}
		places[c] = append(places[c], i)
	}
	return f.blocks.Get(ctx, want, func(c cid.Cid, block []byte) error {
		for _, i := range places[c] {
			if err := f.fill(into(), off, i, c, block); err != nil {
				return err
			}
		}
		return nil
	})
}

func (f *File) leaf(i int) (cid.Cid, error) {
	c, err := f.table.cid(i)
	if err != nil {
		return c, fmt.Errorf("ipfs: file %s: leaf table: %w", f.root, err)
	}
	return c, nil
}

// fill copies what p, the bytes from off, needs of leaf i, whose block is c.
func (f *File) fill(p []byte, off int64, i int, c cid.Cid, block []byte) error {
	node, err := decodeNode(c, block)
	if err != nil {
		return err
	}
	start, end := f.table.start(i), f.table.end(i)
	if int64(len(node.data)) != end-start {
		return fmt.Errorf("ipfs: file %s: %w: leaf %s holds %d bytes, the tree says %d",
			f.root, ErrMalformed, c, len(node.data), end-start)
	}
	from, to := max(start, off), min(end, off+int64(len(p)))
	copy(p[from-off:to-off], node.data[from-start:to-start])
	return nil
}
