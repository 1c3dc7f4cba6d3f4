// Package layer reads eStargz and zstd:chunked layers: it finds and verifies a
// blob's table of contents, keeps what is needed of it on disk, and turns a
// chunk into a byte range of the blob, and that into decompressed, verified
// bytes.
//
// The way of a layer: [ReadTOC] once, when it is first mounted; [Save]; then on
// every start [Load], which is quick and holds the table of objects, and
// [LoadEntries] only where a tree has to be built again. [Open] with the loaded index reads
// chunks. The formats are those of stargz-snapshotter (docs/estargz.md) and
// containers/storage (docs/containers-storage-zstd-chunked.md); the latter's
// two footers and its files with a digest only for the whole are read as well.
//
// It knows nothing of where a blob comes from ([Source]) or of what its bytes
// are for.
package layer

import "context"

// Source gives the bytes of one layer blob.
type Source interface {
	// Size is the blob's length in bytes.
	Size() int64
	// ReadAt fills p with the bytes from off. It returns fewer than len(p)
	// bytes only together with an error.
	ReadAt(ctx context.Context, p []byte, off int64) (int, error)
}

// LateSource is a Source that knows when bytes come before it needs room for them:
// most of the time that a chunk takes is waiting for a peer, many are waited for at
// once, and memory that was not touched before is dear.
type LateSource interface {
	Source
	// ReadInto is ReadAt of n bytes into what room returns, which it asks at most
	// once.
	ReadInto(ctx context.Context, n, off int64, room func() []byte) (int, error)
}
