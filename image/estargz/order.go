package estargz

import (
	"archive/tar"

	"github.com/containerd/stargz-snapshotter/estargz"
)

// landmarkContents are those of the landmarks, which the format fixes.
const landmarkContents = 0xf

// Names that mean a deletion, by the OCI's image specification.
const (
	whiteoutPrefix = ".wh."         // before the name of what is deleted
	opaqueMark     = ".wh..wh..opq" // in a directory of which only this layer's part stays
)

// ordered returns the entries as they come in the blob: those of prioritized
// first, each after what it depends on, then the landmark, which tells that some
// were chosen or that none were, then the others in the order of the tar. An
// entry that a later one replaces is left out. missed are those of prioritized
// for which there is no entry.
func (n *normalizer) ordered(prioritized []string) (out []*entry, missed []string) {
	first := n.first(prioritized)
	for _, p := range prioritized {
		if n.last(cleanName(p)) == nil {
			missed = append(missed, p)
		}
	}
	landmark := estargz.NoPrefetchLandmark
	if len(first.out) > 0 {
		landmark = estargz.PrefetchLandmark
	}
	out = append(first.out, &entry{
		header:   &tar.Header{Typeflag: tar.TypeReg, Name: landmark, Size: 1, Format: tar.FormatPAX},
		contents: n.written,
	})
	for _, e := range n.entries {
		if !e.replaced && !first.taken[e] {
			out = append(out, e)
		}
	}
	return out, missed
}

// last is the entry that stays of those called name, nil if there is none.
func (n *normalizer) last(name string) *entry {
	if at := n.seen[name]; at != nil {
		return at.entry
	}
	return nil
}

// front is the part of a layer that comes before the landmark. Whoever unpacks
// a tar goes by its order: a directory hands attributes down to what is made in
// it, a deletion concerns what is there already, and of the names of one inode
// the last header counts. So an entry comes with all those before it in the tar
// to which its order matters, and the layer unpacks to the same tree.
type front struct {
	*normalizer
	place map[*entry]int      // in the tar
	early map[*entry][]*entry // what a directory or deletion concerns and comes after
	inode map[*entry]*entry   // the first name of a hard link's inode
	names map[*entry][]*entry // by first name: all of an inode with several, in order

	taken map[*entry]bool
	out   []*entry
}

// first returns the front with the files of prioritized.
func (n *normalizer) first(prioritized []string) *front {
	f := &front{
		normalizer: n,
		place:      map[*entry]int{}, early: map[*entry][]*entry{},
		inode: map[*entry]*entry{}, names: map[*entry][]*entry{}, taken: map[*entry]bool{},
	}
	if len(prioritized) == 0 {
		return f
	}
	for i, e := range n.entries {
		f.place[e] = i
	}
	for _, e := range n.entries {
		if e.replaced {
			continue
		}
		n.above(e, func(a *entry) {
			if f.place[a] > f.place[e] {
				f.early[a] = append(f.early[a], e)
			}
		})
		if e.header.Typeflag == tar.TypeLink {
			to := n.last(e.header.Linkname)
			if first := f.inode[to]; first != nil {
				to = first
			}
			if f.names[to] == nil {
				f.names[to] = []*entry{to}
			}
			f.inode[e] = to
			f.names[to] = append(f.names[to], e)
		}
	}
	for _, p := range prioritized {
		if e := n.last(cleanName(p)); e != nil {
			f.take(e)
		}
	}
	return f
}

// above calls do with the entries whose order to e matters: e's directories, and
// the deletions of e's name and of these. containerd ignores a layer's root.
func (n *normalizer) above(e *entry, do func(*entry)) {
	call := func(name string) {
		if a := n.last(name); a != nil && a != e {
			do(a)
		}
	}
	for name := cleanName(e.header.Name); name != ""; name = parent(name) {
		dir := parent(name)
		prefix, base := "", name
		if dir != "" {
			prefix, base = dir+"/", name[len(dir)+1:]
			call(dir)
		}
		call(prefix + opaqueMark)
		call(prefix + whiteoutPrefix + base)
	}
}

// take appends e and, before it, what has to be there. All of that precedes e
// in the tar, so it ends.
func (f *front) take(e *entry) {
	if f.taken[e] {
		return
	}
	f.taken[e] = true
	before := func(other *entry) {
		if f.place[other] < f.place[e] {
			f.take(other)
		}
	}
	f.above(e, before)
	for _, other := range f.early[e] {
		before(other)
	}
	if first := f.inode[e]; first != nil {
		for _, other := range f.names[first] {
			before(other)
		}
	}
	f.out = append(f.out, e)
}
