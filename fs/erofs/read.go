package erofs

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"runtime/debug"
	"strings"
	"unsafe"
)

// text is a string of the image's own memory.
func text(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// block returns block i of the data of a directory or symbolic link.
func (im *Image) block(in *Inode, i uint64) ([]byte, error) {
	n := min(in.Size-i*BlockSize, BlockSize)
	off := (uint64(in.Data) + i) * BlockSize
	if in.Layout == FlatInline && n < BlockSize {
		off = in.tail
	}
	b := im.at(off, n)
	if b == nil || in.Layout == ChunkBased || in.Layout == FlatInline && n < BlockSize && off%BlockSize+n > BlockSize {
		return nil, fmt.Errorf("%w: data of inode %d", ErrDamaged, in.Nid)
	}
	return b, nil
}

// Readlink returns a symbolic link's target, in the image's own memory.
func (im *Image) Readlink(in *Inode) (target []byte, err error) {
	defer im.guard(debug.SetPanicOnFault(true), &err)
	if !in.isLink() || in.Size == 0 {
		return nil, fmt.Errorf("%w: inode %d is no symbolic link", ErrDamaged, in.Nid)
	}
	return im.block(in, 0)
}

// Xattr is an attribute of an inode, in the image's own memory. Its name is in two
// parts.
type Xattr struct {
	Prefix string
	Rest   string
	Value  []byte
}

// Is reports whether the attribute has a name.
func (x Xattr) Is(name string) bool {
	return len(name) == len(x.Prefix)+len(x.Rest) && strings.HasPrefix(name, x.Prefix) && strings.HasSuffix(name, x.Rest)
}

// Xattrs calls fn with each attribute of an inode until fn returns false.
func (im *Image) Xattrs(in *Inode, fn func(Xattr) bool) (err error) {
	defer im.guard(debug.SetPanicOnFault(true), &err)
	b := im.at(in.xattrs, in.xattrLen())
	if len(b) == 0 {
		return nil
	}
	const shared = 4 // offset of the count of shared attributes
	if b[shared] != 0 {
		return badXattr(in)
	}
	var x Xattr
	for b = b[XattrHeader:]; len(b) > 0; {
		if len(b) < xattrEntry {
			return badXattr(in)
		}
		name, index, value := int(b[0]), b[1], int(binary.LittleEndian.Uint16(b[2:]))
		n := align4(xattrEntry + name + value)
		if n > len(b) || !x.setPrefix(index) {
			return badXattr(in)
		}
		x.Rest = text(b[xattrEntry : xattrEntry+name])
		x.Value = b[xattrEntry+name : xattrEntry+name+value]
		if !fn(x) {
			return nil
		}
		b = b[n:]
	}
	return nil
}

// setPrefix sets the beginning of a name from its number.
func (x *Xattr) setPrefix(index byte) bool {
	for _, p := range xattrPrefixes {
		if p.index == index {
			x.Prefix = p.prefix
			return true
		}
	}
	return false
}

func badXattr(in *Inode) error {
	return fmt.Errorf("%w: attributes of inode %d", ErrDamaged, in.Nid)
}

// Xattr copies the value of an attribute to dst if it fits there, and returns its
// size. It reports false if the inode has none of that name.
func (im *Image) Xattr(in *Inode, name string, dst []byte) (n int, ok bool, err error) {
	err = im.Xattrs(in, func(x Xattr) bool {
		if ok = x.Is(name); ok {
			if n = len(x.Value); n <= len(dst) {
				copy(dst, x.Value)
			}
		}
		return !ok
	})
	return n, ok, err
}

// Key returns the key of a regular file's object. It reports false for a file that
// has none: an empty one.
func (im *Image) Key(in *Inode) (key [32]byte, ok bool, err error) {
	var hexKey [1 + 2*len(key)]byte
	n, ok, err := im.Xattr(in, XattrRedirect, hexKey[:])
	if !ok || err != nil {
		return key, false, err
	}
	if n != len(hexKey) || hexKey[0] != '/' {
		return key, false, badXattr(in)
	}
	if _, err := hex.Decode(key[:], hexKey[1:]); err != nil {
		return key, false, badXattr(in)
	}
	return key, true, nil
}

// dirBlockOf is a block of a directory's data with its entries counted.
type dirBlockOf struct {
	b []byte
	n int
}

// dirBlock reads block i of a directory.
func (im *Image) dirBlock(in *Inode, i uint64) (dirBlockOf, error) {
	b, err := im.block(in, i)
	if err != nil {
		return dirBlockOf{}, err
	}
	if len(b) < direntSize {
		return dirBlockOf{}, badDir(in)
	}
	off := int(binary.LittleEndian.Uint16(b[8:]))
	if off < direntSize || off%direntSize != 0 || off >= len(b) {
		return dirBlockOf{}, badDir(in)
	}
	return dirBlockOf{b, off / direntSize}, nil
}

func badDir(in *Inode) error { return fmt.Errorf("%w: directory %d", ErrDamaged, in.Nid) }

// name returns the name of an entry, "" if it has none.
func (d dirBlockOf) name(i int) string {
	from := int(binary.LittleEndian.Uint16(d.b[i*direntSize+8:]))
	to := len(d.b)
	if i+1 < d.n {
		to = int(binary.LittleEndian.Uint16(d.b[(i+1)*direntSize+8:]))
	}
	if from < d.n*direntSize || from > to || to > len(d.b) {
		return ""
	}
	name := d.b[from:to]
	if i+1 == d.n {
		if end := bytes.IndexByte(name, 0); end >= 0 {
			name = name[:end]
		}
	}
	if len(name) > maxName {
		return ""
	}
	return text(name)
}

func (d dirBlockOf) nid(i int) uint64 { return binary.LittleEndian.Uint64(d.b[i*direntSize:]) }
func (d dirBlockOf) typ(i int) uint8  { return d.b[i*direntSize+10] }

func blocksOf(in *Inode) uint64 { return (in.Size + BlockSize - 1) / BlockSize }

// Lookup finds a name in a directory. It reports false if there is none.
func (im *Image) Lookup(dir *Inode, name string) (nid uint64, typ uint8, ok bool, err error) {
	defer im.guard(debug.SetPanicOnFault(true), &err)
	if !dir.IsDir() {
		return 0, 0, false, badDir(dir)
	}
	// The block: the last one whose first name is not behind.
	from, to := uint64(0), blocksOf(dir)
	for to-from > 1 && to > 0 {
		mid := from + (to-from)/2
		d, err := im.dirBlock(dir, mid)
		if err != nil {
			return 0, 0, false, err
		}
		if d.name(0) <= name {
			from = mid
		} else {
			to = mid
		}
	}
	if to == 0 {
		return 0, 0, false, nil
	}
	d, err := im.dirBlock(dir, from)
	if err != nil {
		return 0, 0, false, err
	}
	for lo, hi := 0, d.n; lo < hi; {
		mid := (lo + hi) / 2
		switch c := strings.Compare(name, d.name(mid)); {
		case c == 0:
			return d.nid(mid), d.typ(mid), true, nil
		case c < 0:
			hi = mid
		default:
			lo = mid + 1
		}
	}
	return 0, 0, false, nil
}

// Dirents calls fn with the entries of a directory from a place on, which is 0 or
// an entry's Next, until fn returns false. The names are in the image's own memory.
func (im *Image) Dirents(dir *Inode, from int64, fn func(Dirent) bool) (err error) {
	defer im.guard(debug.SetPanicOnFault(true), &err)
	if !dir.IsDir() || from < 0 {
		return badDir(dir)
	}
	block, i := uint64(from)/BlockSize, int(from%BlockSize+direntSize-1)/direntSize
	for ; block < blocksOf(dir); block, i = block+1, 0 {
		d, err := im.dirBlock(dir, block)
		if err != nil {
			return err
		}
		for ; i < d.n; i++ {
			e := Dirent{Name: d.name(i), Nid: d.nid(i), Type: d.typ(i), Next: int64(block*BlockSize) + int64(i+1)*direntSize}
			if i+1 == d.n {
				e.Next = int64(block+1) * BlockSize
			}
			if e.Name == "" {
				return badDir(dir)
			}
			if !fn(e) {
				return nil
			}
		}
	}
	return nil
}
