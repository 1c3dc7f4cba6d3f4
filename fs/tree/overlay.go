package tree

import (
	"slices"
	"strings"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// overlay stacks the layers' trees, lowest first, the way overlayfs looks names
// up (fs/overlayfs/namei.c), and returns the root of the merged tree. The trees
// given are used up.
//
// With below, what would hide something of a layer below the run is kept:
// whiteouts, and the opaqueness of directories.
func overlay(uppers []*inode, below bool) *inode {
	// The root shows what the snapshotter makes it: root's, 0755. Its time is
	// that of the unpacking in containerd; here it must be the same everywhere.
	// overlayfs does not look at a root's opaque mark.
	root := newDir()
	root.dir.merged = below
	stack := make([]*inode, 0, len(uppers))
	for _, u := range slices.Backward(uppers) {
		stack = append(stack, u)
	}
	whiteout := &inode{kind: layer.Char} // one for all, as overlayfs itself makes them

	type item struct {
		dir    *inode   // what the merged directory becomes
		parent *inode   // its ".."
		stack  []*inode // directories that show through each other, highest first
	}
	for todo := []item{{root, root, stack}}; len(todo) > 0; {
		it := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		found := lookupAll(it.stack)
		entries := make([]dirent, 0, len(found)+2)
		entries = append(entries, dirent{".", it.dir}, dirent{"..", it.parent})
		for name, f := range found {
			in := f.in
			switch {
			case in.isWhiteout():
				if !it.dir.dir.merged {
					continue
				}
				in = whiteout
			case in.kind == layer.Dir:
				in.dir.merged = it.dir.dir.merged && !f.stopped
				in.dir.opaque = it.dir.dir.merged && f.stopped
				todo = append(todo, item{in, it.dir, f.stack()})
			}
			entries = append(entries, dirent{name, in})
		}
		for _, e := range entries {
			e.ino.nlink++
		}
		slices.SortFunc(entries, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
		it.dir.dir.entries = entries
		for _, in := range it.stack {
			in.dir.children = nil
		}
	}
	return root
}

// found is what a name leads to in a stack of directories.
type found struct {
	in      *inode
	lower   []*inode // of a directory: those it is merged with, highest first
	stopped bool     // nothing further down can be seen
}

func (f *found) stack() []*inode { return append([]*inode{f.in}, f.lower...) }

// lookupAll looks up every name of a stack of directories at once.
func lookupAll(stack []*inode) map[string]*found {
	n := 0
	for _, dir := range stack {
		n = max(n, len(dir.dir.children))
	}
	names := make(map[string]*found, n)
	for _, dir := range stack {
		for name, in := range dir.dir.children {
			f := names[name]
			switch {
			case f == nil:
				names[name] = &found{in: in, stopped: in.kind != layer.Dir || in.dir.opaque}
			case f.stopped:
			case in.kind != layer.Dir:
				f.stopped = true
			default:
				f.lower = append(f.lower, in)
				f.stopped = in.dir.opaque
			}
		}
	}
	return names
}
