package fs

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// below looks names up in the lower directories of an overlay as overlayfs
// would (fs/overlayfs/namei.c), without mounting one. It is not safe for
// concurrent use.
type below struct {
	roots []string // topmost first
	// trail has the directories on the way to the last one that was looked
	// into, root first: the next name is mostly in the same one, or near.
	trail []mergedDir
}

// mergedDir is a directory of the merged file system.
type mergedDir struct {
	name   string
	layers []int // indexes of the roots in which it is, topmost first; none if it does not exist
}

// openBelow returns what looks names up in these directories, topmost first.
func openBelow(roots []string) (*below, error) {
	b := &below{roots: roots}
	var all mergedDir
	for i, r := range roots {
		var st unix.Stat_t
		if err := unix.Lstat(r, &st); err != nil {
			return nil, fmt.Errorf("lower directory %s: %w", r, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return nil, fmt.Errorf("lower directory %s is none", r)
		}
		all.layers = append(all.layers, i) // overlayfs looks at no root's opaque mark
	}
	b.trail = []mergedDir{all}
	return b, nil
}

// has reports whether the merged file system has something at a path, clean and
// relative to its root. No symbolic link is followed.
//
// It says yes where the path is too long for the kernel to be asked: a whiteout
// kept in vain does less harm than one too few.
func (b *below) has(p string) (bool, error) {
	dir, _ := path.Split(p)
	exists, err := false, b.enter(strings.TrimSuffix(dir, "/"))
	if err == nil {
		exists, _, err = b.lookUp(b.trail[len(b.trail)-1].layers, p, false)
	}
	if errors.Is(err, unix.ENAMETOOLONG) {
		return true, nil
	}
	return exists, err
}

// enter makes dir the last of the trail.
func (b *below) enter(dir string) error {
	depth := 1
	for done := 0; done < len(dir); depth++ {
		end := len(dir)
		if i := strings.IndexByte(dir[done:], '/'); i >= 0 {
			end = done + i
		}
		name := dir[done:end]
		if depth == len(b.trail) || b.trail[depth].name != name {
			_, layers, err := b.lookUp(b.trail[depth-1].layers, dir[:end], true)
			if err != nil {
				return err
			}
			b.trail = append(b.trail[:depth], mergedDir{strings.Clone(name), layers})
		}
		done = end + 1
	}
	b.trail = b.trail[:depth]
	return nil
}

// lookUp looks for what is at a path whose directory is in these layers, topmost
// first. With merge it also returns the layers in which it is a directory that
// shows.
func (b *below) lookUp(layers []int, p string, merge bool) (exists bool, in []int, err error) {
	for _, i := range layers {
		full := b.roots[i] + "/" + p
		var st unix.Stat_t
		err := unix.Lstat(full, &st)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return false, nil, fmt.Errorf("look up %q: %w", full, err)
		}
		kind := st.Mode & unix.S_IFMT
		if kind != unix.S_IFDIR {
			whiteout := kind == unix.S_IFCHR && st.Rdev == 0
			return exists || !whiteout, slices.Clip(in), nil
		}
		exists = true
		if !merge {
			break
		}
		in = append(in, i)
		opaque, err := isOpaque(full)
		if err != nil {
			return false, nil, err
		}
		if opaque {
			break
		}
	}
	return exists, slices.Clip(in), nil
}

// isOpaque reports whether overlayfs shows nothing of lower layers in a
// directory.
func isOpaque(dir string) (bool, error) {
	var value [1]byte
	_, err := unix.Lgetxattr(dir, "trusted.overlay.opaque", value[:])
	switch {
	case err == nil:
		return value[0] == 'y', nil
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ERANGE), errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	}
	return false, fmt.Errorf("look whether %q is opaque: %w", dir, err)
}
