package erofs

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrDamaged is for an image that is not what was written.
var ErrDamaged = errors.New("image of a tree is damaged (remove it to have it built again)")

// Image is an image in memory. Its methods may be called by many at once; none
// may run when Close is called, and what they return of the image's own memory
// must not be used any more then.
//
// Everything is checked against the image's bounds: whatever is in it, a method
// returns an error that is [ErrDamaged] or something of the image, and takes no
// longer than it takes to read the image once.
type Image struct {
	b      []byte
	super  Super
	mapped bool
}

// Open maps the image in a file. A file that is cut short or cannot be read later
// is a damaged image then, and harms nobody else.
func Open(path string) (*Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // the map stays
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Size() < BlockSize || fi.Size() > math.MaxInt {
		return nil, fmt.Errorf("%w: %s has %d bytes", ErrDamaged, path, fi.Size())
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	im, err := New(b)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), unix.Munmap(b))
	}
	im.mapped = true
	return im, nil
}

// New takes the image in b, which must not be modified.
func New(b []byte) (*Image, error) {
	im := &Image{b: b}
	if err := im.readSuper(); err != nil {
		return nil, err
	}
	var root Inode
	if err := im.Inode(im.Root(), &root); err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	if !root.IsDir() {
		return nil, fmt.Errorf("%w: root is no directory", ErrDamaged)
	}
	return im, nil
}

func (im *Image) readSuper() (err error) {
	defer im.guard(debug.SetPanicOnFault(true), &err)
	if len(im.b) < BlockSize || !im.super.decode(im.b) {
		return fmt.Errorf("%w: no superblock of ours", ErrDamaged)
	}
	size := uint64(im.super.Blocks) * BlockSize
	if size < BlockSize || size > uint64(len(im.b)) {
		return fmt.Errorf("%w: %d bytes of %d", ErrDamaged, len(im.b), size)
	}
	im.b = im.b[:size:size]
	return nil
}

// Close unmaps the image.
func (im *Image) Close() error {
	if !im.mapped {
		return nil
	}
	im.mapped = false
	return unix.Munmap(im.b[:cap(im.b)])
}

// Verify reads the whole image and compares it with the checksums in its
// superblock. It returns [ErrDamaged] if they differ.
func (im *Image) Verify() (err error) {
	defer im.guard(debug.SetPanicOnFault(true), &err)
	if UUID(sha256.Sum256(im.b[BlockSize:])) != im.super.UUID {
		return fmt.Errorf("%w: contents do not match its UUID", ErrDamaged)
	}
	if binary.LittleEndian.Uint32(im.b[SuperOffset+4:]) != superChecksum(im.b) {
		return fmt.Errorf("%w: superblock does not match its checksum", ErrDamaged)
	}
	return nil
}

// UUID is what the superblock gives as the hash of the image's contents; [Image.Verify]
// tells whether it is.
func (im *Image) UUID() [16]byte { return im.super.UUID }

// Root returns the root's nid.
func (im *Image) Root() uint64 { return uint64(im.super.Root) }

// guard ends a method that reads the image, deferred with the panic-on-fault
// state before it: a fault in the image's memory, as there is when its file was
// cut short or its disk fails, becomes an error. Any other panic is none of ours.
func (im *Image) guard(before bool, err *error) {
	debug.SetPanicOnFault(before)
	r := recover()
	if r == nil {
		return
	}
	var fault interface {
		runtime.Error
		Addr() uintptr
	}
	if e, ok := r.(error); !ok || !errors.As(e, &fault) || fault.Addr()-uintptr(unsafe.Pointer(unsafe.SliceData(im.b))) >= uintptr(cap(im.b)) {
		panic(r)
	}
	*err = fmt.Errorf("%w: cannot be read", ErrDamaged)
}

// at returns n bytes at an offset, nil if they are not in the image.
func (im *Image) at(off, n uint64) []byte {
	if size := uint64(len(im.b)); off > size || n > size-off {
		return nil
	}
	return im.b[off : off+n : off+n]
}

// Inode is an inode of an image.
type Inode struct {
	Header
	Nid uint64

	xattrs uint64 // where they begin, with their header
	tail   uint64 // what lies behind them
}

// IsDir reports whether the inode is a directory.
func (in *Inode) IsDir() bool { return ModeOf(2) == uint32(in.Mode)&modeType }

// IsRegular reports whether the inode is a regular file.
func (in *Inode) IsRegular() bool { return ModeOf(1) == uint32(in.Mode)&modeType }

// IsDevice reports whether the inode is a device, which its Data numbers then.
func (in *Inode) IsDevice() bool {
	t := uint32(in.Mode) & modeType
	return t == ModeOf(3) || t == ModeOf(4)
}

// isLink reports whether the inode is a symbolic link.
func (in *Inode) isLink() bool { return ModeOf(7) == uint32(in.Mode)&modeType }

// Inode reads an inode.
func (im *Image) Inode(nid uint64, in *Inode) (err error) {
	defer im.guard(debug.SetPanicOnFault(true), &err)
	const first = BlockSize / NidSize
	if nid < first || nid > math.MaxUint64/NidSize {
		return noInode(nid)
	}
	off := nid * NidSize
	b := im.at(off, InodeSize)
	if b == nil || !in.decode(b) || TypeOf(uint32(in.Mode)) == 0 {
		return noInode(nid)
	}
	in.Nid = nid
	in.xattrs = off + InodeSize
	in.tail = in.xattrs + in.xattrLen()
	if im.at(in.xattrs, in.xattrLen()) == nil {
		return noInode(nid)
	}
	if (in.IsDir() && in.Size > uint64(len(im.b))) || (in.isLink() && in.Size > maxLink) || in.IsRegular() && in.Size > 1<<MaxFileBits {
		return noInode(nid)
	}
	return nil
}

func noInode(nid uint64) error { return fmt.Errorf("%w: no inode of ours at %d", ErrDamaged, nid) }

// Inodes calls fn with each inode, in the order of their places, until fn returns
// false. The inode is fn's only during the call.
func (im *Image) Inodes(fn func(*Inode) bool) error {
	var in Inode
	off := uint64(BlockSize)
	for n := uint64(0); n < im.super.Inodes; {
		used, err := im.used(off)
		if err != nil {
			return err
		}
		if !used {
			off = (off/BlockSize + 1) * BlockSize // the next one did not fit
			continue
		}
		if err := im.Inode(off/NidSize, &in); err != nil {
			return err
		}
		if n++; !fn(&in) {
			return nil
		}
		off = (in.tail + in.beside() + NidSize - 1) &^ (NidSize - 1)
	}
	return nil
}

// used reports whether an inode is at an offset.
func (im *Image) used(off uint64) (used bool, err error) {
	defer im.guard(debug.SetPanicOnFault(true), &err)
	b := im.at(off, InodeSize)
	if b == nil {
		return false, fmt.Errorf("%w: it has less inodes than it says", ErrDamaged)
	}
	return b[0] != 0, nil
}

// beside returns the bytes that lie behind an inode's attributes.
func (in *Inode) beside() uint64 {
	switch in.Layout {
	case FlatInline:
		return in.Size % BlockSize
	case ChunkBased:
		return ChunkAddrSize
	}
	return 0
}
