package layer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"

	"github.com/containerd/stargz-snapshotter/estargz"
)

// Format is how a layer's payload and TOC are compressed.
type Format uint8

// The formats of layers.
const (
	Gzip Format = iota + 1 // eStargz, and stargz before it
	Zstd                   // zstd:chunked
)

// String returns the format's name: "estargz" or "zstd:chunked".
func (f Format) String() string {
	switch f {
	case Gzip:
		return "estargz"
	case Zstd:
		return "zstd:chunked"
	default:
		return "format " + strconv.Itoa(int(f))
	}
}

// footer is what a blob's last bytes tell of its TOC.
type footer struct {
	format   Format
	tocStart int64 // of the compressed TOC in the blob
	tocEnd   int64
	// payloadEnd is where the compressed tar ends, and with it the reach of
	// the last chunk.
	payloadEnd int64
	jsonSize   int64 // of the TOC, -1 if the footer does not tell
}

const (
	// A legacy stargz footer lacks the four bytes of the extra field's
	// subfield header (estargz/types.go).
	legacyFooterSize = estargz.FooterSize - 4
	// externalFooterSize is that of eStargz whose TOC is another blob.
	externalFooterSize = 46
	// maxFooterSize is that of zstd:chunked as containers/storage writes it
	// since 1.50, with the header of its skippable frame.
	maxFooterSize = 64 + skippableHeaderSize

	skippableHeaderSize = 8
)

// parseFooter finds the TOC of a blob of size bytes that ends in tail. It
// returns ErrNotStargz where no footer is, ErrInvalid where one points
// outside of the blob, ErrNotLazy for an external TOC.
func parseFooter(tail []byte, size int64) (footer, error) {
	f, err := parseGzipFooter(tail, size)
	if err == nil && f.format == 0 {
		f, err = parseZstdFooter(tail, size)
	}
	switch {
	case err != nil:
		return footer{}, err
	case f.format == 0:
		return footer{}, fmt.Errorf("%w: no footer at the end of the blob", ErrNotStargz)
	case f.tocStart < 0 || f.tocStart >= f.tocEnd || f.payloadEnd < 0:
		return footer{}, fmt.Errorf("%w: the footer places it at bytes %d to %d of %d", ErrInvalid, f.tocStart, f.tocEnd, size)
	case f.tocEnd-f.tocStart > MaxTOCBytes:
		return footer{}, fmt.Errorf("%w: %d bytes compressed, at most %d", ErrLimit, f.tocEnd-f.tocStart, MaxTOCBytes)
	case f.jsonSize > MaxTOCJSONBytes:
		return footer{}, fmt.Errorf("%w: %d bytes of JSON, at most %d", ErrLimit, f.jsonSize, MaxTOCJSONBytes)
	}
	return f, nil
}

// parseGzipFooter recognises the footers of eStargz: an empty gzip member
// whose extra field tells the TOC's offset. The format is 0 if there is none.
func parseGzipFooter(tail []byte, size int64) (footer, error) {
	// gzipExtra returns the extra field if the last n bytes are such a member:
	// header, length of the extra field, extra field, empty block, trailer.
	gzipExtra := func(n int) []byte {
		const header, length, block, trailer = 10, 2, 5, 8
		if len(tail) < n {
			return nil
		}
		member := tail[len(tail)-n:]
		extra := member[header+length : n-block-trailer]
		if !bytes.HasPrefix(member, []byte{0x1f, 0x8b, 8, 4}) ||
			int(binary.LittleEndian.Uint16(member[header:])) != len(extra) {
			return nil
		}
		return extra
	}
	const magic = "STARGZ"
	var field []byte
	var footerSize int64
	switch {
	case bytes.HasPrefix(gzipExtra(estargz.FooterSize), []byte("SG\x16\x00")):
		footerSize = estargz.FooterSize
		field = gzipExtra(estargz.FooterSize)[4:]
	case gzipExtra(legacyFooterSize) != nil:
		footerSize = legacyFooterSize
		field = gzipExtra(legacyFooterSize)
	case string(gzipExtra(externalFooterSize)) == "SG\x11\x00STARGZEXTERNALTOC":
		return footer{}, fmt.Errorf("%w: its table of contents is another blob (external TOC)", ErrNotLazy)
	default:
		return footer{}, nil
	}
	if string(field[16:]) != magic {
		return footer{}, nil
	}
	start, err := strconv.ParseInt(string(field[:16]), 16, 64)
	if err != nil {
		return footer{}, fmt.Errorf("%w: the footer's offset %q is no hexadecimal number", ErrInvalid, field[:16])
	}
	return footer{format: Gzip, tocStart: start, tocEnd: size - footerSize, payloadEnd: start, jsonSize: -1}, nil
}

// parseZstdFooter recognises the footers of zstd:chunked: a skippable frame
// that holds, as 64-bit little-endian numbers, offset, compressed size, size
// and type of the TOC, then whatever the version added (the place of tar-split
// data), then a magic. stargz-snapshotter and containers/storage before 1.47
// write 40 bytes, 1.47 to 1.49 56, and since then 64 with another magic.
func parseZstdFooter(tail []byte, size int64) (footer, error) {
	if !bytes.HasSuffix(tail, []byte("GnUlInUx")) && !bytes.HasSuffix(tail, []byte("GNUlInUx")) {
		return footer{}, nil
	}
	for _, n := range []int{40, 56, 64} {
		frame := len(tail) - n - skippableHeaderSize
		if frame < 0 || !bytes.Equal(tail[frame:frame+skippableHeaderSize], []byte{0x50, 0x2a, 0x4d, 0x18, byte(n), 0, 0, 0}) {
			continue
		}
		word := func(i int) uint64 { return binary.LittleEndian.Uint64(tail[len(tail)-n+8*i:]) }
		offset, compressed, plain, kind := word(0), word(1), word(2), word(3)
		if kind != 1 {
			return footer{}, fmt.Errorf("%w: its table of contents is of the unknown type %d", ErrNotLazy, kind)
		}
		last := uint64(size - int64(n) - skippableHeaderSize)
		if offset > last || compressed > last-offset || plain > 1<<62 {
			return footer{}, fmt.Errorf("%w: the footer places it at byte %d, %d bytes long, of %d", ErrInvalid, offset, compressed, size)
		}
		return footer{
			format:     Zstd,
			tocStart:   int64(offset),
			tocEnd:     int64(offset + compressed),
			payloadEnd: int64(offset) - skippableHeaderSize,
			jsonSize:   int64(plain),
		}, nil
	}
	return footer{}, nil
}
