// Package estargz converts image layers to eStargz, and tells which need none:
// a tar whose parts are compressed on their own, each file's contents apart,
// with a table of contents, from which package fs/layer mounts them without
// unpacking. Any eStargz reader reads them.
//
// The format is that of the stargz-snapshotter project (its docs/estargz.md),
// whose types are used here. The writer is ours, because what that one writes
// depends on more than it has to: the header of the next file is compressed
// together with the contents of the one before it, so that other times give
// other contents. Here a compressed part holds a piece of one file and nothing
// else, or else headers only: the same file is the same bytes in every layer.
//
// What a conversion would lose or damage is mended before it (normalize.go), or
// refused with a reason, so that the caller can push the layer as it is.
package estargz

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// ErrNotConvertible is returned for a layer that would not be the same after
// its conversion. Its message tells what stands in the way. The layer can be
// used as it is.
var ErrNotConvertible = errors.New("layer cannot be converted to eStargz without a loss")

// Options are how to convert a layer. All but TempDir can be seen in the result.
type Options struct {
	// ChunkSize is how many bytes of a file are compressed, and later fetched
	// and verified, on their own; 0 stands for DefaultChunkSize.
	ChunkSize int
	// Level is gzip's, from 1 to 9; 0 stands for 6.
	Level int
	// Prioritized are the paths of files to put first, in this order: those
	// that a container reads when it starts.
	Prioritized []string
	// TempDir takes the contents of the layer's files while it is converted;
	// default: [os.TempDir].
	TempDir string
}

// DefaultChunkSize is the usual size of chunks, in bytes.
const DefaultChunkSize = 1 << 20

const defaultLevel = 6

// Digests are what an image says of an eStargz layer.
type Digests struct {
	DiffID           digest.Digest // of the uncompressed blob, TOC included
	TOC              digest.Digest // of the TOC's JSON
	UncompressedSize int64         // in bytes
}

// Result is what was written.
type Result struct {
	Digests
	// Missed are those of Options.Prioritized that the layer does not have.
	Missed []string
}

// Convert writes the tar in src (plain, or compressed with gzip or zstd) to dst
// as an eStargz: the same bytes each time and everywhere for the same input and
// options. It holds the contents of the layer's files in a temporary file, and
// of these in memory as many chunks as it compresses at once (two for each
// processor, [maxWorkers] of which it uses at most).
func Convert(ctx context.Context, dst io.Writer, src *io.SectionReader, o Options) (Result, error) {
	r, err := convert(ctx, dst, src, o)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return Result{}, fmt.Errorf("convert layer: %w", err)
	}
	return r, nil
}

func convert(ctx context.Context, dst io.Writer, src *io.SectionReader, o Options) (Result, error) {
	if o.ChunkSize == 0 {
		o.ChunkSize = DefaultChunkSize
	}
	if o.Level == 0 {
		o.Level = defaultLevel
	}
	if o.ChunkSize < 0 || o.ChunkSize > layer.MaxChunkBytes {
		return Result{}, fmt.Errorf("chunk size %d is not between 1 and %d", o.ChunkSize, layer.MaxChunkBytes)
	}
	if o.Level < gzip.BestSpeed || o.Level > gzip.BestCompression {
		return Result{}, fmt.Errorf("gzip level %d is not between %d and %d", o.Level, gzip.BestSpeed, gzip.BestCompression)
	}
	temp, err := os.CreateTemp(o.TempDir, "ipfs-stargz-*")
	if err != nil {
		return Result{}, err
	}
	defer temp.Close()
	if err := os.Remove(temp.Name()); err != nil {
		return Result{}, err
	}
	plain, err := decompress(&contextReader{ctx, src})
	if err != nil {
		return Result{}, err
	}
	defer plain.Close()
	buffered := bufio.NewWriterSize(temp, 1<<20)
	n := newNormalizer(buffered)
	if err := n.copy(plain); err != nil {
		return Result{}, err
	}
	if err := buffered.Flush(); err != nil {
		return Result{}, err
	}
	files, missed := n.ordered(o.Prioritized)
	digests, err := write(ctx, dst, files, temp, o)
	return Result{Digests: digests, Missed: missed}, err
}

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
