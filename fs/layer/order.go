package layer

import (
	"cmp"
	"iter"
	"slices"
)

// InBlobOrder ranges over the objects whose contents begin within the first
// limit bytes of the blob, in the order in which they lie there: those before
// the prefetch landmark with limit [Index.PrefetchSize], all with
// [Index.BlobSize]. The order is found anew by each range, which takes 16 bytes
// an object while it lasts; nothing of it is kept.
func (x *Index) InBlobOrder(limit int64) iter.Seq[ObjectView] {
	type place struct {
		blob  int64
		inner uint32
		i     int32
	}
	return func(yield func(ObjectView) bool) {
		var places []place
		for i := range x.objects {
			if c := (ObjectView{x, i}).Chunk(0); c.BlobOffset < limit {
				places = append(places, place{c.BlobOffset, uint32(c.InnerOffset), int32(i)})
			}
		}
		slices.SortFunc(places, func(a, b place) int {
			return cmp.Or(cmp.Compare(a.blob, b.blob), cmp.Compare(a.inner, b.inner), cmp.Compare(a.i, b.i))
		})
		for _, p := range places {
			if !yield(ObjectView{x, int(p.i)}) {
				return
			}
		}
	}
}
