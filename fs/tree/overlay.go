package tree

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// overlay stacks the layers' trees, lowest first, the way overlayfs looks names
// up (fs/overlayfs/namei.c), and returns the root of the merged tree. The trees
// given are used up.
//
// With below, what would hide something of a layer below the run is kept:
// whiteouts of what it has, and the opaqueness of directories.
func overlay(uppers []*inode, below func(path string) (bool, error)) (*inode, error) {
	// The root shows what the snapshotter makes it: root's, 0755. Its time is
	// that of the unpacking in containerd; here it must be the same everywhere.
	// overlayfs does not look at a root's opaque mark.
	root := newDir()
	root.dir.merged = below != nil
	stack := make([]*inode, 0, len(uppers))
	for _, u := range slices.Backward(uppers) {
		stack = append(stack, u)
	}
	whiteout := &inode{kind: layer.Char} // one for all, as overlayfs itself makes them

	type item struct {
		dir    *inode // what the merged directory becomes
		parent *inode // its ".."
		path   *trail
		stack  []*inode // directories that show through each other, highest first
	}
	for todo := []item{{root, root, nil, stack}}; len(todo) > 0; {
		it := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		merged := it.dir.dir.merged
		names := lookUpAll(it.stack)
		dirPath := "" // once it is asked for
		entries := make([]dirent, 0, len(names)+2)
		entries = append(entries, dirent{".", it.dir}, dirent{"..", it.parent})
		for _, n := range names {
			in := n.in
			switch {
			case in.isWhiteout():
				if !merged {
					continue
				}
				if dirPath == "" {
					dirPath = it.path.String()
				}
				hides, err := below(join(dirPath, n.name))
				if err != nil {
					return nil, fmt.Errorf("look below the run: %w", err)
				}
				if !hides {
					continue
				}
				in = whiteout
			case in.kind == layer.Dir:
				in.dir.merged = merged && !n.stopped
				in.dir.opaque = merged && n.stopped
				todo = append(todo, item{in, it.dir, &trail{it.path, n.name}, append([]*inode{in}, n.lower...)})
			}
			entries = append(entries, dirent{n.name, in})
		}
		for _, e := range entries {
			e.ino.nlink++
		}
		slices.SortFunc(entries, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
		it.dir.dir.entries = entries
		for _, in := range it.stack {
			in.dir.children = nil // not needed any more
		}
	}
	return root, nil
}

// trail is a path, made a text only where one is needed: of all directories of
// a deep tree, the texts would be large. Nil is the root's.
type trail struct {
	dir  *trail
	name string
}

func (t *trail) String() string {
	if t == nil {
		return ""
	}
	var names []string
	for ; t != nil; t = t.dir {
		names = append(names, t.name)
	}
	slices.Reverse(names)
	return strings.Join(names, "/")
}

// found is what a name leads to in a stack of directories.
type found struct {
	name    string
	in      *inode
	lower   []*inode // of a directory: those it is merged with, highest first
	stopped bool     // nothing further down can be seen
}

// lookUpAll looks up every name of a stack of directories, in no order.
func lookUpAll(stack []*inode) []found {
	var names []found
	index := make(map[string]int) // in names; not for the last directory
	for i, dir := range stack {
		names = slices.Grow(names, len(dir.dir.children))
		for name, in := range dir.dir.children {
			n, ok := index[name]
			if !ok {
				if i < len(stack)-1 {
					index[name] = len(names)
				}
				names = append(names, found{name: name, in: in, stopped: in.kind != layer.Dir || in.dir.opaque})
				continue
			}
			f := &names[n]
			switch {
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
