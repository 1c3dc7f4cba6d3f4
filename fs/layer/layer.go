// Package layer reads eStargz and zstd:chunked layers: it finds and verifies a
// blob's table of contents, keeps what is needed of it on disk, and turns a
// chunk into a byte range of the blob, and that into decompressed, verified
// bytes.
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
