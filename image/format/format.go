// Package format tells how a layer's blob is packed, from its first and last
// bytes: whether it can be mounted lazily, and the digest of its table of
// contents, by which its files are verified then.
package format

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/opencontainers/go-digest"
)

// Format is how a layer is packed.
type Format string

// The formats that are told apart.
const (
	EStargz     Format = "eStargz"
	ZstdChunked Format = "zstd:chunked"
	Gzip        Format = "gzip"
	Zstd        Format = "zstd"
	Tar         Format = "tar"
	Unknown     Format = "unknown"
)

// Lazy tells whether layers of the format can be mounted before they are there.
func (f Format) Lazy() bool { return f == EStargz || f == ZstdChunked }

// Limits on a table of contents, in bytes.
const (
	maxTOCBlob = 64 << 20  // compressed
	maxTOCJSON = 512 << 20 // uncompressed
)

// ErrTOC is wrapped by errors about a blob that says that it has a table of
// contents, but has none that can be read.
var ErrTOC = errors.New("bad table of contents")

// Info is what a blob's bytes tell of it.
type Info struct {
	Format Format
	// TOCDigest is that of the uncompressed JSON; "" unless Format is lazy.
	TOCDigest digest.Digest
}

// Detect reads the beginning and end of the blob of size bytes, and its table
// of contents if there is one, which it hashes but does not keep.
func Detect(blob io.ReaderAt, size int64) (Info, error) {
	head := make([]byte, min(size, 262))
	if _, err := readFull(blob, head, 0); err != nil {
		return Info{}, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return detectGzip(blob, size)
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), isSkippable(head):
		return detectZstd(blob, size)
	case bytes.HasSuffix(head, []byte("ustar")):
		return Info{Format: Tar}, nil
	case len(head) == 262 && len(bytes.Trim(head, "\x00")) == 0:
		return Info{Format: Tar}, nil // an empty archive is zeros
	default:
		return Info{Format: Unknown}, nil
	}
}

// detectGzip looks for the footer of eStargz: a gzip member without contents,
// with the offset of the table of contents in its header
// (stargz-snapshotter, docs/estargz.md).
func detectGzip(blob io.ReaderAt, size int64) (Info, error) {
	for _, d := range []decompressor{new(estargz.GzipDecompressor), new(estargz.LegacyGzipDecompressor)} {
		n := d.FooterSize()
		if size < n {
			continue
		}
		footer := make([]byte, n)
		if _, err := readFull(blob, footer, size-n); err != nil {
			return Info{}, err
		}
		_, offset, _, err := d.ParseFooter(footer)
		if err != nil {
			continue
		}
		return hashTOC(EStargz, d, blob, offset, size-n-offset)
	}
	return Info{Format: Gzip}, nil
}

// The footer of zstd:chunked is a skippable frame of 40 bytes, or of 56 or 64
// with the position of a tar-split, that ends in one of two magic numbers
// (containers/storage, pkg/chunked/internal, by version).
const footerHeader = 8 // of the skippable frame

var (
	footerSizes  = []int64{40, 56, 64}
	footerMagics = []string{"GnUlInUx", "GNUlInUx"}
)

// isSkippable tells whether p begins with a skippable frame of zstd (RFC 8878,
// 3.1.2).
func isSkippable(p []byte) bool {
	return len(p) >= 4 && p[0]&0xf0 == 0x50 && bytes.Equal(p[1:4], []byte{0x2a, 0x4d, 0x18})
}

func detectZstd(blob io.ReaderAt, size int64) (Info, error) {
	for _, n := range footerSizes {
		if size < footerHeader+n {
			continue
		}
		frame := make([]byte, footerHeader+n)
		if _, err := readFull(blob, frame, size-footerHeader-n); err != nil {
			return Info{}, err
		}
		magic := string(frame[len(frame)-8:])
		if !isSkippable(frame) || binary.LittleEndian.Uint32(frame[4:]) != uint32(n) || !slices.Contains(footerMagics, magic) {
			continue
		}
		offset := binary.LittleEndian.Uint64(frame[footerHeader:])
		length := binary.LittleEndian.Uint64(frame[footerHeader+8:])
		if offset > uint64(size) || length > uint64(size)-offset {
			return Info{}, fmt.Errorf("it is said to be at %d, %d bytes long, in a blob of %d: %w", offset, length, size, ErrTOC)
		}
		return hashTOC(ZstdChunked, new(zstdchunked.Decompressor), blob, int64(offset), int64(length))
	}
	return Info{Format: Zstd}, nil
}

// decompressor is what formats have in common in package estargz.
type decompressor interface {
	estargz.Decompressor
	DecompressTOC(r io.Reader) (tocJSON io.ReadCloser, err error)
}

// hashTOC hashes the table of contents in the length bytes at offset.
func hashTOC(f Format, d decompressor, blob io.ReaderAt, offset, length int64) (Info, error) {
	if offset < 0 || length <= 0 {
		return Info{}, fmt.Errorf("it is said to be at %d, %d bytes long: %w", offset, length, ErrTOC)
	}
	if length > maxTOCBlob {
		return Info{}, fmt.Errorf("it has %d compressed bytes, at most %d are read: %w", length, maxTOCBlob, ErrTOC)
	}
	toc, err := d.DecompressTOC(io.NewSectionReader(blob, offset, length))
	if err != nil {
		return Info{}, fmt.Errorf("%w: %w", err, ErrTOC)
	}
	defer toc.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(toc, maxTOCJSON+1))
	if err != nil {
		return Info{}, fmt.Errorf("%w: %w", err, ErrTOC)
	}
	if n > maxTOCJSON {
		return Info{}, fmt.Errorf("it has more than %d bytes: %w", maxTOCJSON, ErrTOC)
	}
	return Info{Format: f, TOCDigest: digest.NewDigest(digest.SHA256, h)}, nil
}

// readFull fills p from off; a short blob is an error.
func readFull(r io.ReaderAt, p []byte, off int64) (int, error) {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
