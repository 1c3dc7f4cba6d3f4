package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// Names with a meaning in layers (OCI image specification, layer.md).
const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
)

// hidden reports whether a name is one of eStargz's own, which containerd's
// unpack leaves in the root directory but no one wants to see there.
func hidden(name string) bool {
	switch name {
	case ".prefetch.landmark", ".no.prefetch.landmark", "stargz.index.json":
		return true
	}
	return false
}

// upper is one layer while it is applied, as containerd's archive.Apply does it
// (pkg/archive/tar.go), entry by entry in the layer's order, to a directory
// tree of its own. Where containerd's outcome looks odd, it is still the one
// that people know from an unpacked image, so it is the right one.
type upper struct {
	*Merge
	root *inode
	// naive is set for a layer with nothing below. containerd does not use an
	// overlay for it: whiteouts remove from the layer itself.
	naive bool
	// With naive and if the layer has opaque markers at all: the paths that
	// had an entry, and the directories whose marker was applied.
	unpacked map[string]bool
	cleared  map[string]bool
	// The directory of the last entry, for most entries follow one of the same
	// directory; nil after a path through symbolic links. It is there still: an
	// entry only removes what is in its own directory.
	last     *inode
	lastPath string
}

// apply applies one more layer.
func (m *Merge) apply(entries []layer.Entry) error {
	u := &upper{Merge: m, root: newDir(), naive: len(m.uppers) == 0 && !m.overNormal}
	if u.naive && hasOpaque(entries) {
		u.unpacked, u.cleared = make(map[string]bool), make(map[string]bool)
	}
	for i := range entries {
		if i%4096 == 0 && m.ctx.Err() != nil {
			return m.ctx.Err()
		}
		e := &entries[i]
		if e.Name == "" || hidden(e.Name) {
			continue // containerd leaves the root directory as the snapshotter made it
		}
		if err := u.entry(e); err != nil {
			return refuse(e, err)
		}
	}
	if err := u.restoreDirTimes(entries); err != nil {
		return err
	}
	m.uppers = append(m.uppers, u.root)
	return nil
}

// refuse returns the error for a layer that has such an entry; an end of the
// context is not the layer's fault.
func refuse(e *layer.Entry, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &RefusedError{Path: e.Name, Err: err}
}

func hasOpaque(entries []layer.Entry) bool {
	for i := range entries {
		if path.Base(entries[i].Name) == opaqueMarker {
			return true
		}
	}
	return false
}

// entry applies one entry.
func (u *upper) entry(e *layer.Entry) error {
	parent, dirPath, base, err := u.place(e.Name)
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(parent, dirPath, base)
	}
	if u.unpacked != nil {
		u.unpacked[join(dirPath, base)] = true
	}

	children := parent.dir.children
	in := children[base]
	if in != nil && (in.kind != layer.Dir || e.Type != layer.Dir) {
		delete(children, base)
		in = nil
	}
	switch {
	case e.Type == layer.Hardlink:
		in, err = u.linkTarget(e.LinkName)
	case in == nil:
		in, err = u.create(parent, e)
	}
	if err != nil {
		return err
	}
	children[base] = in
	return in.setAttributes(e)
}

// place returns the directory in which an entry of this name is to be, made if it
// is missing, its path, and the entry's name in it.
func (u *upper) place(name string) (parent *inode, dirPath, base string, err error) {
	dirPath, base = split(name)
	if u.last != nil && dirPath == u.lastPath {
		return u.last, dirPath, base, checkName(base)
	}
	u.last = nil
	if err := checkName(name); err != nil {
		return nil, "", "", err
	}
	resolved, err := u.resolve(u.root, dirPath)
	if err != nil {
		return nil, "", "", err
	}
	if parent, err = u.makeParents(resolved); err != nil {
		return nil, "", "", err
	}
	if resolved == dirPath {
		u.last, u.lastPath = parent, dirPath
	}
	return parent, resolved, base, nil
}

// create makes the inode of an entry that is no hard link.
func (u *upper) create(parent *inode, e *layer.Entry) (*inode, error) {
	in := &inode{kind: e.Type}
	switch e.Type {
	case layer.Dir:
		in = newDir()
	case layer.Reg:
		in.ent = e
		if err := u.checkObject(e); err != nil {
			return nil, err
		}
	case layer.Symlink:
		in.ent = e
		in.mode = 0o777
		switch n := len(e.LinkName); {
		case n == 0 || strings.IndexByte(e.LinkName, 0) >= 0:
			return nil, fmt.Errorf("%w: target of symbolic link %q", ErrEntry, e.LinkName)
		case n > maxTarget:
			return nil, fmt.Errorf("%w: symbolic link with a target of %d bytes (at most %d)", ErrLimit, n, maxTarget)
		}
	case layer.Char, layer.Block:
		in.rdev = makedev(e.Major, e.Minor)
	case layer.Fifo:
	default:
		return nil, fmt.Errorf("%w: unknown type %d", ErrEntry, e.Type)
	}
	return in, u.inherit(in, parent)
}

// checkObject checks the size and key of a regular file.
func (u *upper) checkObject(e *layer.Entry) error {
	if e.Size < 0 {
		return fmt.Errorf("%w: size of %d bytes", ErrEntry, e.Size)
	}
	if e.Size > maxFileSize {
		return fmt.Errorf("%w: file of %d bytes (at most %d)", ErrLimit, e.Size, int64(maxFileSize))
	}
	if e.Size == 0 {
		return nil
	}
	id := binary.BigEndian.Uint64(e.Key[:8])
	if id < minObjectID {
		return fmt.Errorf("%w: %s begins with a reserved number", ErrKey, e.Key)
	}
	if k, ok := u.keys[id]; !ok {
		u.keys[id] = &e.Key
	} else if *k != e.Key {
		return fmt.Errorf("%w: %s and %s have the same first 64 bits", ErrKey, e.Key, k)
	}
	return nil
}

// linkTarget finds what a hard link links to.
func (u *upper) linkTarget(name string) (*inode, error) {
	if checkName(name) != nil {
		return nil, fmt.Errorf("%w: %q is no path", ErrLink, name)
	}
	dirPath, base := split(name)
	dirPath, err := u.resolve(u.root, dirPath)
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrLink, name, err)
	}
	in, err := u.lookup(u.root, join(dirPath, base))
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrLink, name, err)
	}
	if in == nil {
		return nil, fmt.Errorf("%w: %q", ErrLink, name)
	}
	if in.kind == layer.Dir {
		return nil, fmt.Errorf("%w: %q is a directory", ErrLink, name)
	}
	return in, nil
}

// whiteout applies a whiteout or opaque marker found in a directory.
func (u *upper) whiteout(parent *inode, dirPath, base string) error {
	if base == opaqueMarker {
		if u.naive {
			return u.clear(parent, dirPath)
		}
		parent.dir.opaque = true
		return nil
	}
	name := base[len(whiteoutPrefix):]
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("%w: of %q", ErrWhiteout, name)
	}
	children := parent.dir.children
	if u.naive {
		delete(children, name)
		return nil
	}
	if children[name] != nil {
		return fmt.Errorf("%w: its layer has the name %q too, before it", ErrWhiteout, name)
	}
	children[name] = &inode{kind: layer.Char}
	return nil
}

// clear does what a marker does to a directory when there is no overlay: all
// that had no entry of its own so far goes, with everything below it.
func (u *upper) clear(dir *inode, dirPath string) error {
	if u.cleared[dirPath] {
		return nil
	}
	u.cleared[dirPath] = true
	type item struct {
		in   *inode
		path string
	}
	for todo := []item{{dir, dirPath}}; len(todo) > 0; {
		it := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if err := u.step(len(it.in.dir.children)); err != nil {
			return err
		}
		for name, in := range it.in.dir.children {
			p := join(it.path, name)
			if !u.unpacked[p] {
				delete(it.in.dir.children, name)
			} else if in.kind == layer.Dir {
				todo = append(todo, item{in, p})
			}
		}
	}
	return nil
}

// restoreDirTimes gives, at the end and in order, each directory entry's time to
// whatever is at its path by now.
func (u *upper) restoreDirTimes(entries []layer.Entry) error {
	for i := range entries {
		e := &entries[i]
		if e.Type != layer.Dir || e.Name == "" || hidden(e.Name) || strings.HasPrefix(path.Base(e.Name), whiteoutPrefix) {
			continue
		}
		in, err := u.find(u.root, e.Name)
		if err != nil {
			return refuse(e, err)
		}
		if in == nil {
			return refuse(e, fmt.Errorf("%w: the directory is removed by its own layer", ErrParent))
		}
		in.setTime(e.ModTime)
	}
	return nil
}

// checkName checks that a name is a clean relative path within the limits.
func checkName(name string) error {
	rest, depth := name, 0
	for more := true; more; depth++ {
		var c string
		c, rest, more = strings.Cut(rest, "/")
		switch {
		case c == "" || c == "." || c == ".." || strings.IndexByte(c, 0) >= 0:
			return fmt.Errorf("%w: name is not a clean relative path", ErrEntry)
		case len(c) > maxName:
			return fmt.Errorf("%w: name of %d bytes (at most %d)", ErrLimit, len(c), maxName)
		case depth == maxDepth:
			return fmt.Errorf("%w: more than %d directories deep", ErrLimit, maxDepth)
		}
	}
	return nil
}
