package layer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// maxZstdBlock is the most that one block of a frame decompresses to (RFC
// 8878, section 3.1.1.2.4).
const maxZstdBlock = 128 << 10

// maxZstdWindow bounds a decoder's memory: a chunk and what precedes it in its
// stream.
const maxZstdWindow = MaxChunkBytes + MaxInnerOffset + 2*maxZstdBlock

// newZstdDecoder returns a decoder without goroutines, to be reset.
func newZstdDecoder() (*zstd.Decoder, error) {
	return zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxZstdWindow),
		zstd.WithDecoderMaxMemory(maxZstdWindow),
		zstd.IgnoreChecksum(true)) // all that is read is verified by SHA-256
}

// newZstdReader returns a reader of the frame in compressed, which holds size
// bytes.
func newZstdReader(compressed []byte, size int64) (io.ReadCloser, error) {
	if !isZstdFrame(compressed) {
		return nil, errors.New("it is not compressed with zstd")
	}
	d, err := newZstdDecoder()
	if err != nil {
		return nil, fmt.Errorf("start to decompress it: %w", err)
	}
	header := bytes.Clone(compressed[:zstdWindowEnd])
	shrinkZstdWindow(header, size)
	if err := d.Reset(io.MultiReader(bytes.NewReader(header), bytes.NewReader(compressed[len(header):]))); err != nil {
		d.Close()
		return nil, fmt.Errorf("start to decompress it: %w", err)
	}
	return d.IOReadCloser(), nil
}

// zstdWindowEnd is how much of a frame there must be to find its window: magic,
// descriptor, window.
const zstdWindowEnd = 6

func isZstdFrame(b []byte) bool {
	return len(b) >= zstdWindowEnd && binary.LittleEndian.Uint32(b) == 0xfd2fb528
}

// shrinkZstdWindow lowers the window that the frame in b declares to what is
// needed to decompress its first size bytes. The window is what a decoder
// allocates, and encoders declare theirs (32 MiB at containers/storage's usual
// level) however little a frame holds. No match can reach back further than to
// the frame's begin, so the decompressed bytes are the same.
//
// Window_Descriptor (RFC 8878, section 3.1.1.1.2) is the byte after the
// header's first: five bits of exponent and three of mantissa. Frames of a
// single segment have none.
func shrinkZstdWindow(b []byte, size int64) {
	const singleSegment = 1 << 5
	if !isZstdFrame(b) || b[4]&singleSegment != 0 {
		return
	}
	need := size + maxZstdBlock // the last block may go on past size
	for exponent := byte(0); exponent < b[5]>>3; exponent++ {
		if int64(1)<<(10+exponent) >= need {
			b[5] = exponent << 3
			return
		}
	}
}
