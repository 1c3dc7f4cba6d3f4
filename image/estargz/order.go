package estargz

import (
	"archive/tar"

	"github.com/containerd/stargz-snapshotter/estargz"
)

// landmarkContents are those of the landmarks, which the format fixes.
const landmarkContents = 0xf

// ordered returns the entries as they come in the blob: those of prioritized
// first, each after its directories and after what it is a hard link to, then
// the landmark, which tells that these were chosen or that none were, then the
// others in the order of the tar. An entry that a later one replaces is
// left out. missed are those of prioritized for which there is no entry.
func (n *normalizer) ordered(prioritized []string) (out []*entry, missed []string) {
	taken := map[*entry]bool{}
	var take func(name string) bool
	take = func(name string) bool {
		at := n.seen[name]
		if at == nil || at.entry == nil {
			return false
		}
		e := at.entry
		if taken[e] {
			return true
		}
		taken[e] = true
		for i := range len(name) {
			if i == 0 || name[i] == '/' {
				take(name[:i])
			}
		}
		if e.header.Typeflag == tar.TypeLink {
			take(e.header.Linkname)
		}
		out = append(out, e)
		return true
	}
	for _, p := range prioritized {
		if !take(cleanName(p)) {
			missed = append(missed, p)
		}
	}
	landmark := estargz.NoPrefetchLandmark
	if len(prioritized) > 0 {
		landmark = estargz.PrefetchLandmark
	}
	out = append(out, &entry{
		header:   &tar.Header{Typeflag: tar.TypeReg, Name: landmark, Size: 1, Format: tar.FormatPAX},
		contents: n.written,
	})
	for _, e := range n.entries {
		if !e.replaced && !taken[e] {
			out = append(out, e)
		}
	}
	return out, missed
}
