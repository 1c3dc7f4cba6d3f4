package layer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer/internal/tocjson"
)

// parse fills t from the TOC's JSON, of at most maxEntries entries.
func (t *TOC) parse(r io.Reader, maxEntries int) error {
	p := parser{toc: t, objects: make(map[Key]int)}
	return p.parse(r, maxEntries)
}

func (p *parser) parse(r io.Reader, maxEntries int) error {
	d := tocjson.NewDecoder(r)
	var e tocjson.Entry
	for n := 0; ; n++ {
		switch err := d.Next(&e); {
		case err == io.EOF:
			if v := d.Version(); v != 0 && v != 1 {
				return fmt.Errorf("%w: its table of contents has the unknown version %d", ErrNotLazy, v)
			}
			return p.finish()
		case errors.Is(err, tocjson.ErrSyntax):
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		case errors.Is(err, tocjson.ErrTooLong):
			return fmt.Errorf("%w: %w", ErrLimit, err)
		case err != nil:
			return err
		}
		if n == maxEntries {
			return fmt.Errorf("%w: more than %d entries", ErrLimit, maxEntries)
		}
		if err := p.add(&e); err != nil {
			return err
		}
	}
}

// parser turns the TOC's entries, in which the chunks of a file follow it,
// into entries and objects.
type parser struct {
	toc     *TOC
	objects map[Key]int // index in toc.Objects; nil where only the entries are wanted

	// The file whose chunks are read: it is open until the next entry that is
	// no chunk.
	open     bool
	landmark bool // the file is a landmark, to be left out
	file     Entry
	chunks   []Chunk
	next     int64 // where in the file its next chunk is

	arena    []Chunk         // where the chunks of objects are carved from
	names    strings.Builder // where names are carved from
	offsets  []int64         // where compressed streams begin, in order of the TOC
	ends     []int64         // where some of them end, if before the next begins
	lastTime []byte          // last modtime parsed, and what it means
	modTime  time.Time
}

func (p *parser) add(e *tocjson.Entry) error {
	if string(e.Type) == "chunk" {
		if !p.open {
			return fmt.Errorf("%w: a chunk of %q follows no regular file with contents", ErrInvalid, e.Name)
		}
		return p.chunk(e)
	}
	if err := p.close(); err != nil {
		return err
	}
	entry, err := p.entry(e)
	if err != nil {
		return err
	}
	landmark := isLandmark(entry.Name)
	if landmark && entry.Name == estargz.PrefetchLandmark && e.Offset > 0 && e.Offset < p.toc.footer.payloadEnd {
		p.toc.PrefetchSize = e.Offset
	}
	if entry.Size > 0 {
		p.open, p.landmark, p.file = true, landmark, entry
		p.chunks, p.next = p.chunks[:0], 0
		return p.chunk(e)
	}
	if !landmark {
		p.toc.Entries = append(p.toc.Entries, entry)
	}
	return nil
}

// chunk adds a chunk to the open file: the file's own entry has the first one.
func (p *parser) chunk(e *tocjson.Entry) error {
	name, rest := p.file.Name, p.file.Size-p.next
	c := Chunk{Offset: e.ChunkOffset, Size: e.ChunkSize, BlobOffset: e.Offset, BlobSize: e.MemberSize, InnerOffset: e.InnerOffset}
	if c.Offset != p.next {
		return fmt.Errorf("%w: %q has a chunk at %d where one at %d is next", ErrInvalid, name, c.Offset, p.next)
	}
	if c.Size == 0 {
		c.Size = rest // "to the end of the file"
	}
	switch {
	case c.Size <= 0 || c.Size > rest:
		return fmt.Errorf("%w: %q of %d bytes has a chunk of %d bytes at %d", ErrInvalid, name, p.file.Size, c.Size, c.Offset)
	case c.BlobOffset < 0 || c.BlobOffset >= p.toc.footer.payloadEnd || c.InnerOffset < 0:
		return fmt.Errorf("%w: %q has a chunk at byte %d (and %d within) of a blob whose files end at %d",
			ErrInvalid, name, c.BlobOffset, c.InnerOffset, p.toc.footer.payloadEnd)
	case e.MemberSize < 0 || e.MemberSize > p.toc.footer.payloadEnd-c.BlobOffset:
		return fmt.Errorf("%w: %q has a chunk in a stream of %d bytes at byte %d of a blob whose files end at %d",
			ErrInvalid, name, e.MemberSize, c.BlobOffset, p.toc.footer.payloadEnd)
	case c.Size > MaxChunkBytes:
		return fmt.Errorf("%w: %q has a chunk of %d bytes, at most %d", ErrNotLazy, name, c.Size, MaxChunkBytes)
	case c.InnerOffset > MaxInnerOffset:
		return fmt.Errorf("%w: %q has a chunk %d bytes within its compressed stream, at most %d", ErrNotLazy, name, c.InnerOffset, MaxInnerOffset)
	}
	text := e.ChunkDigest
	if len(text) == 0 && c.Offset == 0 && c.Size == p.file.Size {
		text = e.Digest // the file is one chunk; containers/storage writes no other digest then
	}
	var err error
	if c.Digest, err = parseDigest(text); err != nil {
		return fmt.Errorf("chunk at %d of %q: %w", c.Offset, name, err)
	}
	p.chunks = append(p.chunks, c)
	p.next += c.Size
	if p.objects == nil {
		return nil
	}
	p.offsets = append(p.offsets, c.BlobOffset)
	if e.MemberSize > 0 {
		p.ends = append(p.ends, c.BlobOffset+e.MemberSize)
	}
	return nil
}

// close ends the open file, if there is one.
func (p *parser) close() error {
	if !p.open {
		return nil
	}
	p.open = false
	if p.next != p.file.Size {
		return fmt.Errorf("%w: %q of %d bytes has chunks for %d", ErrInvalid, p.file.Name, p.file.Size, p.next)
	}
	if p.landmark {
		return nil
	}
	t := p.toc
	p.file.Key = keyOf(p.chunks)
	t.Entries = append(t.Entries, p.file)
	if p.objects == nil {
		return nil
	}
	if i, ok := p.objects[p.file.Key]; ok {
		// The key holds the size unless there is one chunk only.
		if t.Objects[i].Size != p.file.Size {
			return fmt.Errorf("%w: %q has a digest that another file of another size has", ErrInvalid, p.file.Name)
		}
		return nil
	}
	n := len(p.chunks)
	if cap(p.arena)-len(p.arena) < n {
		p.arena = make([]Chunk, 0, max(n, 256))
	}
	p.arena = append(p.arena, p.chunks...)
	p.objects[p.file.Key] = len(t.Objects)
	t.Objects = append(t.Objects, Object{
		Key: p.file.Key, Size: p.file.Size, Chunks: p.arena[len(p.arena)-n : len(p.arena) : len(p.arena)],
	})
	return nil
}

// finish ends the last file and finds how far each chunk's stream can reach:
// as far as the TOC says, or to where the next one begins, or to the end of the
// payload.
func (p *parser) finish() error {
	if err := p.close(); err != nil || p.objects == nil {
		return err
	}
	if !slices.IsSorted(p.offsets) {
		slices.Sort(p.offsets)
	}
	p.offsets = append(slices.Compact(p.offsets), p.toc.footer.payloadEnd)
	at := 0 // objects are mostly in the order of their offsets
	for _, o := range p.toc.Objects {
		for i := range o.Chunks {
			c := &o.Chunks[i]
			if at+1 < len(p.offsets) && p.offsets[at+1] == c.BlobOffset {
				at++
			} else if p.offsets[at] != c.BlobOffset {
				at, _ = slices.BinarySearch(p.offsets, c.BlobOffset)
			}
			reach := p.offsets[at+1] - c.BlobOffset
			if c.BlobSize == 0 || c.BlobSize > reach {
				c.BlobSize = reach
			}
		}
	}
	p.toc.bounds = append(p.offsets, p.ends...)
	slices.Sort(p.toc.bounds)
	p.toc.bounds = slices.Compact(p.toc.bounds)
	return nil
}

// name returns b as a string. Names have their memory in pieces of many, because
// there are so many of them, and they go together.
func (p *parser) name(b []byte) string {
	const piece = 64 << 10
	if p.names.Cap()-p.names.Len() < len(b) {
		p.names = strings.Builder{}
		p.names.Grow(max(piece, len(b)))
	}
	begin := p.names.Len()
	p.names.Write(b)
	return p.names.String()[begin:]
}

// parseDigest reads "sha256:" and 64 hexadecimal digits.
func parseDigest(text []byte) (sum [32]byte, err error) {
	hexa, ok := bytes.CutPrefix(text, []byte("sha256:"))
	switch {
	case len(text) == 0:
		return sum, fmt.Errorf("%w: it has no digest to verify it by", ErrNotLazy)
	case !ok && bytes.IndexByte(text, ':') > 0:
		return sum, fmt.Errorf("%w: its digest %q is not a sha256", ErrNotLazy, text)
	case !ok || len(hexa) != 2*len(sum):
		return sum, fmt.Errorf("%w: malformed digest %q", ErrInvalid, text)
	}
	for i := range sum {
		hi, lo := hexDigits[hexa[2*i]], hexDigits[hexa[2*i+1]]
		if hi > 15 || lo > 15 {
			return sum, fmt.Errorf("%w: malformed digest %q", ErrInvalid, text)
		}
		sum[i] = hi<<4 | lo
	}
	return sum, nil
}

// hexDigits has the values of lower-case hexadecimal digits, and 255 for anything
// else.
var hexDigits = func() (values [256]byte) {
	for c := range values {
		values[c] = 255
	}
	for v, c := range "0123456789abcdef" {
		values[c] = byte(v)
	}
	return values
}()
