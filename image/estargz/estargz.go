// Package estargz turns layers into eStargz ones that lose nothing of the
// original: unpacked, they give the same tree to the last bit and nanosecond,
// and so does their table of contents, from which package fs/layer mounts them
// without unpacking. Any eStargz reader reads them.
//
// The work is done by the stargz-snapshotter project's own library. What that
// would lose or damage is mended before it (normalize.go) and after it
// (compression.go), or refused with a reason, so that the caller can push the
// layer as it is.
package estargz

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// ErrNotConvertible is returned for a layer that would not be the same after
// its conversion. Its message tells what stands in the way. The layer can be
// used as it is.
var ErrNotConvertible = errors.New("layer cannot be converted to eStargz without a loss")

// Options are how to convert a layer.
type Options struct {
	// ChunkSize is how many bytes of a file are compressed, and later fetched
	// and verified, on their own; 0 stands for 1 MiB.
	ChunkSize int
	// Level is gzip's, from 1 to 9; 0 stands for 6.
	Level int
	// Prioritized are the paths of files to put first, in this order: those
	// that a container reads when it starts.
	Prioritized []string
}

const (
	defaultChunkSize = 1 << 20
	defaultLevel     = 6

	// parallelism is into how many parts a layer is cut that are compressed at
	// the same time. It is no matter of the machine, because the cuts are seen
	// in the result. A layer of less than partBytes a part is not cut.
	parallelism = 4
	partBytes   = 1 << 20
)

// Blob is a converted layer. Read it to its end, and close it in any case.
type Blob struct {
	ctx    context.Context
	blob   *estargz.Blob
	missed []string
	end    bool
}

// Convert returns the tar in r (plain, or compressed with gzip or zstd) as an
// eStargz, the same bytes each time for the same input and options. It holds
// the uncompressed layer in a temporary file while it works, and the result in
// others until the Blob is closed.
func Convert(ctx context.Context, r *io.SectionReader, o Options) (*Blob, error) {
	if o.ChunkSize == 0 {
		o.ChunkSize = defaultChunkSize
	}
	if o.Level == 0 {
		o.Level = defaultLevel
	}
	if o.ChunkSize < 0 || o.ChunkSize > layer.MaxChunkBytes {
		return nil, fmt.Errorf("convert layer: chunk size %d is not between 1 and %d", o.ChunkSize, layer.MaxChunkBytes)
	}
	if o.Level < gzip.BestSpeed || o.Level > gzip.BestCompression {
		return nil, fmt.Errorf("convert layer: gzip level %d is not between %d and %d", o.Level, gzip.BestSpeed, gzip.BestCompression)
	}
	temp, err := os.CreateTemp("", "ipfs-stargz-*.tar")
	if err != nil {
		return nil, fmt.Errorf("convert layer: %w", err)
	}
	defer temp.Close()
	if err := os.Remove(temp.Name()); err != nil {
		return nil, fmt.Errorf("convert layer: %w", err)
	}
	plain, err := decompress(&contextReader{ctx, r})
	if err != nil {
		return nil, fmt.Errorf("convert layer: %w", err)
	}
	defer plain.Close()
	n := newNormalizer(temp)
	if err := n.copy(plain); err != nil {
		return nil, fmt.Errorf("convert layer: %w", err)
	}
	size, err := temp.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, fmt.Errorf("convert layer: %w", err)
	}
	workers := 1
	if n.payload >= parallelism*partBytes {
		workers = parallelism
	}
	b := &Blob{ctx: ctx}
	// Build is not given ctx, with which it would leave goroutines behind; it
	// ends with what it reads.
	b.blob, err = estargz.Build(io.NewSectionReader(&contextReaderAt{ctx, temp}, 0, size),
		estargz.WithChunkSize(o.ChunkSize),
		estargz.WithParallelism(workers),
		estargz.WithPrioritizedFiles(o.Prioritized),
		estargz.WithAllowPrioritizeNotFound(&b.missed),
		estargz.WithCompression(newCompression(o.Level, n.times)))
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err() // Build does not wrap it
		}
		return nil, fmt.Errorf("convert layer: %w", err)
	}
	return b, nil
}

// Read reads the eStargz blob.
func (b *Blob) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.blob.Read(p)
	b.end = b.end || err == io.EOF
	return n, err
}

// Close frees the temporary files.
func (b *Blob) Close() error {
	err := b.blob.Close()
	// Whatever the library had under way fails now that the files are closed,
	// but it waits for its reader to take what it has.
	_, _ = io.Copy(io.Discard, b.blob)
	return err
}

// Digests are what an image says of an eStargz layer.
type Digests struct {
	DiffID           digest.Digest // of the uncompressed blob, TOC included
	TOC              digest.Digest // of the TOC's JSON
	UncompressedSize int64         // in bytes
}

// Digests returns the blob's digests. It fails before the blob was read to its
// end.
func (b *Blob) Digests() (Digests, error) {
	if !b.end {
		return Digests{}, errors.New("digests of a layer that was not read to its end")
	}
	size, err := b.blob.UncompressedSize()
	if err != nil {
		return Digests{}, err
	}
	return Digests{DiffID: b.blob.DiffID(), TOC: b.blob.TOCDigest(), UncompressedSize: size}, nil
}

// Missed are those of Options.Prioritized that are not first in the layer,
// because it lacks them or an entry for one of their directories.
func (b *Blob) Missed() []string { return b.missed }

// IsStargz reports whether the layer in src needs no conversion: it can be
// mounted lazily as it is. If not, the error is one of package layer's that
// say why, or that of src.
func IsStargz(ctx context.Context, src layer.Source) (layer.Format, digest.Digest, error) {
	toc, err := layer.ReadTOC(ctx, src, "")
	if err != nil {
		return 0, "", err
	}
	return toc.Format, toc.Digest, nil
}

// decompress returns the tar in r.
func decompress(r *contextReader) (io.ReadCloser, error) {
	var magic [4]byte
	n, err := r.r.ReadAt(magic[:], 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic[:n], []byte{0x1f, 0x8b, 8}):
		return gzip.NewReader(r)
	case bytes.Equal(magic[:n], []byte{0x28, 0xb5, 0x2f, 0xfd}), bytes.Equal(magic[1:n], []byte{0x2a, 0x4d, 0x18}) && magic[0]&0xf0 == 0x50:
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	default:
		return io.NopCloser(r), nil
	}
}

// contextReader reads r from its begin until ctx ends.
type contextReader struct {
	ctx context.Context
	r   *io.SectionReader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// contextReaderAt reads r until ctx ends.
type contextReaderAt struct {
	ctx context.Context
	r   io.ReaderAt
}

func (r *contextReaderAt) ReadAt(p []byte, off int64) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.ReadAt(p, off)
}
