package fusetree

import (
	"sync/atomic"

	"github.com/ipfs-stargz/ipfs-stargz/fs/internal/histogram"
)

// Stats counts the requests that reached the server since it was mounted, each
// with the time it took.
type Stats struct {
	Lookups  histogram.Histogram
	ReadDirs histogram.Histogram
	Opens    histogram.Histogram // of files: what was fetched for them included
	Reads    histogram.Histogram

	Passthrough atomic.Int64 // opens of files that the kernel reads by itself
}
