package layer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/ipfs-stargz/ipfs-stargz/fs/internal/buffer"
)

// Layer reads the chunks of one layer blob. It may be used by several
// goroutines at once, and holds nothing that must be closed.
type Layer struct {
	src     Source
	format  Format
	readers sync.Pool // of *chunkReader
}

// Open returns the layer that idx describes and whose bytes src gives.
func Open(idx *Index, src Source) *Layer {
	return &Layer{src: src, format: idx.Format()}
}

const (
	// stepBytes is how much more of a stream is read when what was read first
	// turns out not to suffice.
	stepBytes = 256 << 10
	// maxPooledBytes bounds the chunks whose decompressor is kept for the next
	// one: it may have needed as much memory.
	maxPooledBytes = 4 << 20
)

// ReadChunk reads c from the layer into dst, whose length must be c.Size, and
// verifies it. It reads the Source once in the usual case, and never decompresses
// past the chunk's end. Where it fails dst holds nothing to be used, and the error
// is ErrChunk or ErrChunkDigest if the layer's bytes are wrong, else that of
// the Source.
func (l *Layer) ReadChunk(ctx context.Context, c Chunk, dst []byte) error {
	if int64(len(dst)) != c.Size {
		return fmt.Errorf("read %v: the buffer has %d bytes", c, len(dst))
	}
	return l.ReadChunkInto(ctx, c, func() []byte { return dst })
}

// ReadChunkInto is ReadChunk into what room returns, which is asked at most once,
// when what is to be decompressed is here.
func (l *Layer) ReadChunkInto(ctx context.Context, c Chunk, room func() []byte) error {
	if c.Size <= 0 || c.Size > MaxChunkBytes || c.InnerOffset < 0 || c.InnerOffset > MaxInnerOffset ||
		c.BlobOffset < 0 || c.BlobSize <= 0 || c.BlobSize > l.src.Size()-c.BlobOffset {
		return fmt.Errorf("%w: %v is not within a blob of %d bytes", ErrChunk, c, l.src.Size())
	}
	r, _ := l.readers.Get().(*chunkReader)
	if r == nil {
		r = new(chunkReader)
	}
	in := &r.in
	in.start(ctx, l.src, c)
	dst, err := r.read(l.format, c, room)
	if in.err != nil { // explains any other error
		err = fmt.Errorf("read %v: %w", c, in.err)
	} else if err != nil {
		err = fmt.Errorf("%w: %v: %w", ErrChunk, c, err)
	}
	in.release()
	r.bytes.Reset(nil)
	if c.InnerOffset+c.Size <= maxPooledBytes {
		l.readers.Put(r)
	}
	if err != nil {
		return err
	}
	if got := sha256.Sum256(dst); got != c.Digest {
		return fmt.Errorf("%w (%w): %v: want sha256:%x, has sha256:%x", ErrChunkDigest, ErrChunk, c, c.Digest, got)
	}
	return nil
}

// String tells which chunk it is, for errors.
func (c Chunk) String() string {
	s := fmt.Sprintf("chunk %s... of %d bytes at byte %d of the layer", hex.EncodeToString(c.Digest[:6]), c.Size, c.BlobOffset)
	if c.InnerOffset > 0 {
		s += fmt.Sprintf(", %d within its stream", c.InnerOffset)
	}
	return s
}

// chunkReader holds what one ReadChunk needs and the next can use again.
type chunkReader struct {
	in      stream
	bytes   bytes.Reader
	gzip    *gzip.Reader
	zstd    *zstd.Decoder
	scratch [8 << 10]byte
}

// whole reads the stream's first step, and returns a reader of the stream. Where
// that is all of it, it is one that the decompressor knows, and reads a quarter
// faster than any other.
func (r *chunkReader) whole() (io.Reader, error) {
	if err := r.in.fill(); err != nil {
		return nil, err
	}
	if r.in.left > 0 {
		return &r.in, nil
	}
	r.bytes.Reset(r.in.buf)
	return &r.bytes, nil
}

// read decompresses c out of r.in into what room returns.
func (r *chunkReader) read(format Format, c Chunk, room func() []byte) ([]byte, error) {
	plain, err := r.open(format, c)
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	if r.zstd != nil {
		defer func() { _ = r.zstd.Reset(nil) }() // so that it holds nothing of ctx and src
	}
	for skip := c.InnerOffset; skip > 0; {
		n, err := io.ReadFull(plain, r.scratch[:min(skip, int64(len(r.scratch)))])
		if err != nil {
			return nil, fmt.Errorf("decompress what precedes it: %w", err)
		}
		skip -= int64(n)
	}
	dst := room()[:c.Size]
	if n, err := io.ReadFull(plain, dst); err != nil {
		return nil, fmt.Errorf("decompress, at %d of %d bytes: %w", n, len(dst), err)
	}
	return dst, nil
}

// open returns a reader of what is decompressed out of r.in.
func (r *chunkReader) open(format Format, c Chunk) (io.Reader, error) {
	switch format {
	case Gzip:
		in, err := r.whole()
		if err != nil {
			return nil, err
		}
		if r.gzip == nil {
			r.gzip = new(gzip.Reader)
		}
		return r.gzip, r.gzip.Reset(in)
	case Zstd:
		if r.zstd == nil {
			var err error
			if r.zstd, err = newZstdDecoder(); err != nil {
				return nil, err
			}
		}
		if err := r.in.fill(); err != nil {
			return nil, err
		}
		shrinkZstdWindow(r.in.buf, c.InnerOffset+c.Size)
		return r.zstd, r.zstd.Reset(&r.in)
	}
	return nil, fmt.Errorf("unknown %v", format)
}

// stream reads a compressed stream from a Source: at first as much as the
// chunk can need, and more in steps should that not suffice. It implements
// io.ByteReader, so that gzip adds no buffer of its own.
type stream struct {
	ctx  context.Context
	src  Source
	off  int64 // in the blob, of what is to be read next
	left int64 // bytes from there to the stream's end
	step int64
	lent *buffer.Buffer
	buf  []byte // of lent
	pos  int
	err  error // of src
}

func (s *stream) start(ctx context.Context, src Source, c Chunk) {
	// Data that does not compress grows by far less than this.
	n := c.InnerOffset + c.Size
	most := n + n/64 + 4<<10
	*s = stream{ctx: ctx, src: src, off: c.BlobOffset, left: c.BlobSize, step: most}
}

// release gives back what the stream holds.
func (s *stream) release() {
	if s.lent != nil {
		buffer.Put(s.lent)
	}
	*s = stream{}
}

// fill reads the next step. It returns io.EOF at the stream's end.
func (s *stream) fill() error {
	if s.err != nil {
		return s.err
	}
	if s.left == 0 {
		return io.EOF
	}
	n := min(s.step, s.left)
	s.buf, s.pos = nil, 0
	if s.err = readInto(s.ctx, s.src, n, s.off, func() []byte {
		s.buf = s.room(n)
		return s.buf
	}); s.err != nil {
		s.buf = nil
		return s.err
	}
	s.off, s.left, s.step = s.off+n, s.left-n, stepBytes
	return nil
}

// room returns memory for n bytes, what was read before being used up.
func (s *stream) room(n int64) []byte {
	if s.lent == nil || int64(cap(s.lent.Bytes())) < n {
		if s.lent != nil {
			buffer.Put(s.lent)
		}
		s.lent = buffer.Get(n)
	}
	return s.lent.Bytes()[:n]
}

func (s *stream) Read(p []byte) (int, error) {
	if s.pos == len(s.buf) {
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.buf[s.pos:])
	s.pos += n
	return n, nil
}

func (s *stream) ReadByte() (byte, error) {
	if s.pos == len(s.buf) {
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
	b := s.buf[s.pos]
	s.pos++
	return b, nil
}
