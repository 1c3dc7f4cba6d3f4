package objects

import (
	"sync/atomic"

	"github.com/ipfs-stargz/ipfs-stargz/fs/internal/histogram"
)

// Stats counts what met FUSE and what was fetched since the start. Bytes are
// uncompressed.
type Stats struct {
	Passthrough atomic.Int64 // of the opens, those of files that the kernel reads by itself

	LookupSeconds histogram.Histogram // look-ups of objects, with what was fetched for them
	OpenSeconds   histogram.Histogram // objects opened
	ReadSeconds   histogram.Histogram // read requests

	Hits        atomic.Int64 // chunks that were wanted, and in the cache
	Joined      atomic.Int64 // chunks that were wanted, and on their way already
	Raised      atomic.Int64 // chunks that came to be waited for on their way in the background
	Failures    atomic.Int64 // chunks that could not be had
	CacheErrors atomic.Int64 // chunks that were had, or were here, and could not be kept or read

	fetched [purposes]Fetched
}

// Fetched counts chunks.
type Fetched struct {
	Chunks atomic.Int64
	Bytes  atomic.Int64
}

// ForDemand counts the chunks that were fetched because somebody waited for
// them, be it that they came to be waited for only on their way.
func (s *Stats) ForDemand() *Fetched { return &s.fetched[demand] }

// ForReadAhead counts the chunks that were fetched ahead of a reader.
func (s *Stats) ForReadAhead() *Fetched { return &s.fetched[ahead] }

// ForPrefetch counts the chunks that were fetched in the background.
func (s *Stats) ForPrefetch() *Fetched { return &s.fetched[background] }
