package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"
	digest "github.com/opencontainers/go-digest"
)

// TOC is a layer's table of contents, checked against the limits above and,
// where a digest was given, against that.
type TOC struct {
	Digest   digest.Digest // of the TOC's JSON
	Format   Format
	BlobSize int64
	// PrefetchSize is how many bytes from the blob's begin hold the files that
	// whoever built it expects to be read first (the estargz prefetch
	// landmark), 0 for none.
	PrefetchSize int64
	// Entries are the layer's names in the order of the TOC, which is the
	// tar's. One name can come twice; the later entry counts. The landmarks
	// of eStargz are left out.
	Entries []Entry
	// Objects are the distinct contents of the regular files that are not
	// empty, in the order in which they come first.
	Objects []Object

	footer footer
	raw    []byte  // the TOC as it is in the blob, compressed
	bounds []int64 // see Bounds
}

// Bounds returns where in the blob compressed streams are known to begin or
// end, rising, the last being the end of the payload. A blob that is cut at
// such places, and nowhere else, gives each file's contents from parts that
// hold little else.
func (t *TOC) Bounds() []int64 { return t.bounds }

// The first read is of the footer alone, for what lies before it may be in
// other blocks than the TOC; but a blob that is no larger than a usual block is
// read whole.
const (
	maxFooterBytes = 64 + skippableHeaderSize
	wholeBytes     = 32 << 10
)

// ReadTOC reads, verifies and checks the TOC of the layer in src. want is the
// digest of its JSON as an image's manifest gives it
// (containerd.io/snapshot/stargz/toc.digest); if it is empty whatever is there
// is taken, and TOC.Digest tells what that was.
//
// It reads src twice, the footer and then exactly the TOC, or once if the blob
// is small. Its errors are ErrNotStargz, ErrTOCDigest, ErrInvalid,
// ErrLimit and ErrNotLazy, and those of src.
func ReadTOC(ctx context.Context, src Source, want digest.Digest) (*TOC, error) {
	size := src.Size()
	n := size
	if n > wholeBytes {
		n = maxFooterBytes
	}
	if n <= 0 {
		return nil, fmt.Errorf("%w: the blob is empty", ErrNotStargz)
	}
	tail := make([]byte, n)
	if err := readFull(ctx, src, tail, size-n); err != nil {
		return nil, fmt.Errorf("read the end of the layer: %w", err)
	}
	f, err := parseFooter(tail, size)
	if err != nil {
		return nil, err
	}
	raw := make([]byte, f.tocEnd-f.tocStart)
	have := raw[:0] // what of raw the tail held: its end
	if start := max(f.tocStart, size-n); start < f.tocEnd {
		have = raw[start-f.tocStart:]
		copy(have, tail[start-(size-n):])
	}
	if missing := raw[:len(raw)-len(have)]; len(missing) > 0 {
		if err := readFull(ctx, src, missing, f.tocStart); err != nil {
			return nil, fmt.Errorf("read the layer's table of contents: %w", err)
		}
	}
	return parseTOC(ctx, f, size, raw, want)
}

// readFull is src.ReadAt, without an error if all of p was read.
func readFull(ctx context.Context, src Source, p []byte, off int64) error {
	return readInto(ctx, src, int64(len(p)), off, func() []byte { return p })
}

// readInto is readFull of n bytes into what room returns, which is asked as late as
// src can.
func readInto(ctx context.Context, src Source, n, off int64, room func() []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var got int
	var err error
	if late, ok := src.(LateSource); ok {
		got, err = late.ReadInto(ctx, n, off, room)
	} else {
		got, err = src.ReadAt(ctx, room(), off)
	}
	if int64(got) >= n {
		return nil
	}
	if err == nil || err == io.EOF {
		return fmt.Errorf("%d of %d bytes at %d: %w", got, n, off, io.ErrUnexpectedEOF)
	}
	return err
}

// parseTOC decompresses raw, and reads and checks what it holds.
func parseTOC(ctx context.Context, f footer, blobSize int64, raw []byte, want digest.Digest) (*TOC, error) {
	if want != "" {
		if err := want.Validate(); err != nil {
			return nil, fmt.Errorf("%w: want %q, which is no digest: %w", ErrTOCDigest, want, err)
		}
		if want.Algorithm() != digest.SHA256 {
			return nil, fmt.Errorf("%w: want %s, but only sha256 is known", ErrTOCDigest, want)
		}
	}
	plain, jsonSize, err := openTOC(f, raw)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	hash := sha256.New()
	limited := &limitedReader{ctx: ctx, r: io.TeeReader(plain, hash), left: MaxTOCJSONBytes}

	t := &TOC{Format: f.format, BlobSize: blobSize, Entries: roomFor(jsonSize, raw), footer: f, raw: raw}
	parseErr := t.parse(limited, MaxEntries)
	if parseErr != nil && !errors.Is(parseErr, ErrLimit) && ctx.Err() == nil {
		// That it is another TOC than the one wanted explains any other fault.
		if _, err := io.Copy(io.Discard, limited); err != nil {
			return nil, parseErr
		}
	}
	t.Digest = digest.NewDigest(digest.SHA256, hash)
	if limited.done && want != "" && t.Digest != want {
		return nil, fmt.Errorf("%w: want %s, the layer has %s", ErrTOCDigest, want, t.Digest)
	}
	if parseErr != nil {
		return nil, parseErr
	}
	return t, nil
}

// parseEntries decompresses raw, and reads and checks what it holds, of which it
// returns the entries alone.
func parseEntries(ctx context.Context, f footer, raw []byte) ([]Entry, error) {
	plain, jsonSize, err := openTOC(f, raw)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	p := parser{toc: &TOC{footer: f, Entries: roomFor(jsonSize, raw)}}
	err = p.parse(&limitedReader{ctx: ctx, r: plain, left: MaxTOCJSONBytes}, MaxEntries)
	return p.toc.Entries, err
}

// roomFor returns room for about as many entries as come, not trusting jsonSize
// further than what is there can bear.
func roomFor(jsonSize int64, raw []byte) []Entry {
	const usualEntryBytes, usualRatio = 400, 16
	return make([]Entry, 0, min(jsonSize, usualRatio*int64(len(raw)))/usualEntryBytes)
}

// openTOC returns a reader of the TOC's JSON, and how long that claims to be.
func openTOC(f footer, raw []byte) (io.ReadCloser, int64, error) {
	if f.format == Zstd {
		plain, err := newZstdReader(raw, f.jsonSize)
		if err != nil {
			return nil, 0, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		return plain, f.jsonSize, nil
	}
	zr, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, 0, fmt.Errorf("%w: it is not compressed with gzip: %w", ErrInvalid, err)
	}
	zr.Multistream(false)
	tr := tar.NewReader(zr)
	h, err := tr.Next()
	switch {
	case err != nil:
		return nil, 0, fmt.Errorf("%w: it is not in a tar: %w", ErrInvalid, err)
	case h.Name != estargz.TOCTarName:
		return nil, 0, fmt.Errorf("%w: the footer points at a file named %q, not at %s", ErrInvalid, h.Name, estargz.TOCTarName)
	case h.Size > MaxTOCJSONBytes:
		return nil, 0, fmt.Errorf("%w: %d bytes of JSON, at most %d", ErrLimit, h.Size, MaxTOCJSONBytes)
	}
	return io.NopCloser(tr), h.Size, nil
}

// limitedReader reads at most left bytes from r, then fails with ErrLimit, and
// ends early with ctx. Faults of the compression become ErrInvalid.
type limitedReader struct {
	ctx  context.Context
	r    io.Reader
	left int64
	done bool // r was read to its end
}

func (l *limitedReader) Read(p []byte) (int, error) {
	if err := l.ctx.Err(); err != nil {
		return 0, err
	}
	if l.left < int64(len(p)) {
		p = p[:l.left+1] // one more, to find out whether there is more
	}
	n, err := l.r.Read(p)
	l.left -= int64(n)
	switch {
	case l.left < 0:
		return 0, fmt.Errorf("%w: more than %d bytes of JSON", ErrLimit, MaxTOCJSONBytes)
	case err == io.EOF:
		l.done = true
	case err != nil:
		err = fmt.Errorf("%w: decompress it: %w", ErrInvalid, err)
	}
	return n, err
}

// isLandmark tells the entries that eStargz adds to a layer for its own use.
func isLandmark(name string) bool {
	return name == estargz.PrefetchLandmark || name == estargz.NoPrefetchLandmark || name == estargz.TOCTarName
}

// isLossy reports whether s can have lost bytes when it was written as JSON.
func isLossy(s string) bool { return strings.Contains(s, "\uFFFD") }
