package objects

import "sync/atomic"

// Stats counts what met FUSE and what was fetched since the start.
type Stats struct {
	Lookups       atomic.Int64 // objects looked up through FUSE
	Opens         atomic.Int64 // objects opened through FUSE
	Reads         atomic.Int64 // read requests through FUSE
	ChunksFetched atomic.Int64
	BytesFetched  atomic.Int64 // uncompressed
	Failures      atomic.Int64 // chunks that could not be had
	CacheErrors   atomic.Int64 // chunks that were had and could not be kept
}
