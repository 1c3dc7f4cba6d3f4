package fs

import (
	"cmp"
	"os"
	"slices"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/internal/histogram"
	"github.com/ipfs-stargz/ipfs-stargz/fs/objects"
	"github.com/ipfs-stargz/ipfs-stargz/fs/prefetch"
)

// State is what the lazy layers of a node are doing. Counts are since the start,
// bytes of contents uncompressed.
type State struct {
	Mode     string      `json:"mode"` // "kernel" or "fuse"
	Why      string      `json:"why"`
	Requests []Request   `json:"requests"` // what met FUSE, by kind
	Chunks   Chunks      `json:"chunks"`
	Cache    cache.Usage `json:"cache"`
	Layers   []Layer     `json:"layers"` // sorted by CID
	Images   []Image     `json:"images"` // those with a tree, sorted by its directory
}

// Request is one kind of requests that met FUSE.
type Request struct {
	Kind    string  `json:"kind"` // lookup, readdir, open or read
	Count   int64   `json:"count"`
	Seconds float64 `json:"seconds"` // of all together

	Buckets []histogram.Bucket `json:"-"`
}

// Chunks is how readers and the prefetcher came to their chunks.
type Chunks struct {
	Hits        int64 `json:"hits"`   // wanted, and in the cache
	Joined      int64 `json:"joined"` // wanted, and on their way already
	Raised      int64 `json:"raised"` // came to be waited for while they were prefetched
	Failures    int64 `json:"failures"`
	CacheErrors int64 `json:"cache_errors"` // could not be kept

	// What was fetched, by what for: misses, what lies ahead of a reader, and
	// what nobody had asked for yet.
	Demand    Fetched `json:"demand"`
	ReadAhead Fetched `json:"read_ahead"`
	Prefetch  Fetched `json:"prefetch"`

	Passthrough int64 `json:"passthrough"` // opens through FUSE that the kernel reads by itself
}

// Fetched counts chunks.
type Fetched struct {
	Chunks int64 `json:"chunks"`
	Bytes  int64 `json:"bytes"`
}

// Completion is how much of something is here. Objects are distinct contents.
type Completion struct {
	Objects      int   `json:"objects"`
	TotalObjects int   `json:"total_objects"`
	Bytes        int64 `json:"bytes"`
	TotalBytes   int64 `json:"total_bytes"`
	Counted      bool  `json:"counted"` // false: what was here at the start is being counted
}

func (c *Completion) add(o Completion) {
	c.Objects += o.Objects
	c.TotalObjects += o.TotalObjects
	c.Bytes += o.Bytes
	c.TotalBytes += o.TotalBytes
	c.Counted = c.Counted && o.Counted
}

// Layer is a lazy layer.
type Layer struct {
	CID string `json:"cid"`
	Completion
	Prefetch prefetch.State `json:"prefetch"`
	Reason   string         `json:"reason,omitempty"` // why prefetching waits
}

// Image is a run of layers whose names are one tree: an image, or the part of
// one that is lazy. What several of its layers have counts for each.
type Image struct {
	Tree    string   `json:"tree"`   // its directory
	Layers  []string `json:"layers"` // their CIDs, lowest first
	Mounted bool     `json:"mounted"`
	Completion
}

// State returns what the layers are doing now.
func (f *FS) State() (State, error) {
	s := State{
		Mode: f.mode.Mode, Why: f.mode.Why,
		Requests: f.requests(), Chunks: f.chunks(), Cache: f.cache.Usage(),
		Layers: []Layer{},
	}
	by := map[string]Completion{}
	for _, p := range f.prefetch.Progress() {
		c := Completion{p.Objects, p.TotalObjects, p.Bytes, p.TotalBytes, p.Counted}
		by[p.CID] = c
		s.Layers = append(s.Layers, Layer{CID: p.CID, Completion: c, Prefetch: p.State, Reason: p.Reason})
	}
	var err error
	s.Images, err = f.trees.images(by)
	return s, err
}

// images returns the trees that there are.
func (ts *trees) images(layers map[string]Completion) ([]Image, error) {
	names, err := os.ReadDir(ts.root)
	if err != nil {
		return nil, err
	}
	mounted, err := ts.mounted()
	if err != nil {
		return nil, err
	}
	images := []Image{}
	for _, e := range names {
		run, err := ts.readOrigin(e.Name())
		if err != nil {
			continue // it is being built, or goes
		}
		im := Image{Tree: ts.dir(e.Name()), Layers: run.CIDs, Mounted: mounted[ts.dir(e.Name())], Completion: Completion{Counted: true}}
		for _, cid := range run.CIDs {
			im.add(layers[cid])
		}
		images = append(images, im)
	}
	slices.SortFunc(images, func(a, b Image) int { return cmp.Compare(a.Tree, b.Tree) })
	return images, nil
}

// requests adds up what met FUSE in either mode.
func (f *FS) requests() []Request {
	o, t := f.loader.Stats(), &f.treeStats
	return []Request{
		request("lookup", &o.LookupSeconds, &t.Lookups),
		request("readdir", &t.ReadDirs),
		request("open", &o.OpenSeconds, &t.Opens),
		request("read", &o.ReadSeconds, &t.Reads),
	}
}

func request(kind string, hs ...*histogram.Histogram) Request {
	r := Request{Kind: kind}
	for _, h := range hs {
		le, sum, count := h.Snapshot()
		r.Count += count
		r.Seconds += sum
		if r.Buckets == nil {
			r.Buckets = le
			continue
		}
		for i := range le {
			r.Buckets[i].Count += le[i].Count
		}
	}
	return r
}

func (f *FS) chunks() Chunks {
	o := f.loader.Stats()
	return Chunks{
		Hits: o.Hits.Load(), Joined: o.Joined.Load(), Raised: o.Raised.Load(),
		Failures: o.Failures.Load(), CacheErrors: o.CacheErrors.Load(),
		Demand: fetchedOf(o.ForDemand()), ReadAhead: fetchedOf(o.ForReadAhead()), Prefetch: fetchedOf(o.ForPrefetch()),
		Passthrough: o.Passthrough.Load() + f.treeStats.Passthrough.Load(),
	}
}

func fetchedOf(f *objects.Fetched) Fetched {
	return Fetched{Chunks: f.Chunks.Load(), Bytes: f.Bytes.Load()}
}
