package layer

import (
	"slices"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
)

func TestInBlobOrder(t *testing.T) {
	prioritized := []string{"data/6-65536", "data/3-4096", "data/8-300001"}
	toc := readTOC(t, gzipLayer(t, sample(), estargz.WithPrioritizedFiles(prioritized), estargz.WithChunkSize(50_000)))
	x := indexOf(t, toc)
	keys := func(limit int64) (got []Key) {
		for o := range x.InBlobOrder(limit) {
			got = append(got, o.Key())
		}
		return got
	}
	// The TOC's order is that of the blob.
	var all, first []Key
	for _, o := range toc.Objects {
		all = append(all, o.Key)
	}
	for _, name := range prioritized {
		i := slices.IndexFunc(toc.Entries, func(e Entry) bool { return e.Name == name })
		first = append(first, toc.Entries[i].Key)
	}
	if got := keys(x.BlobSize()); !slices.Equal(got, all) {
		t.Errorf("all: %v, want %v", got, all)
	}
	if got := keys(x.PrefetchSize()); !slices.Equal(got, first) {
		t.Errorf("before the landmark: %v, want %v", got, first)
	}
	if got := keys(0); got != nil {
		t.Errorf("before the begin: %v", got)
	}
	for range x.InBlobOrder(x.BlobSize()) {
		break
	}

	// Objects that share a stream are in the order in which they lie within.
	shared := indexOf(t, readTOC(t, blobWith(t, entries(
		`{"name":"b","type":"reg","size":3,"offset":1,"innerOffset":9,"chunkDigest":"`+d+`"}`,
		`{"name":"a","type":"reg","size":4,"offset":1,"innerOffset":2,"chunkDigest":"`+digest.FromString("y").String()+`"}`))))
	var sizes []int64
	for o := range shared.InBlobOrder(shared.BlobSize()) {
		sizes = append(sizes, o.Size())
	}
	if !slices.Equal(sizes, []int64{4, 3}) {
		t.Errorf("in one stream: sizes %v", sizes)
	}
}
