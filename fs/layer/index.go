package layer

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"iter"
	"os"
	"path/filepath"
	"sort"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// The index file. Numbers are little endian; a record's offsets follow in
// comments. After the header come the objects, sorted by key, the chunks in the
// objects' order, and then the compressed TOC as it is in the blob.
const (
	indexName  = "index"
	indexMagic = "ipfsgz\x00\x02" // the last byte is the version

	headerSize = 128
	hMagic     = 0   // [8]byte
	hChecksum  = 8   // uint32, CRC-32C of the header from hTables on
	hTables    = 12  // uint32, CRC-32C of objects and chunks
	hFormat    = 16  // uint32
	hTOC       = 20  // uint32, CRC-32C of the compressed TOC
	hDigest    = 24  // [32]byte, of the TOC's JSON
	hBlobSize  = 56  // int64
	hPrefetch  = 64  // int64
	hBytes     = 72  // int64, sum of the objects' sizes
	hObjects   = 80  // uint64, how many
	hChunks    = 88  // uint64, how many
	hTOCStart  = 96  // int64, these four are those of footer
	hTOCEnd    = 104 // int64
	hPayload   = 112 // int64
	hJSONSize  = 120 // int64

	objectSize  = 48
	oKey        = 0  // Key
	oSize       = 32 // int64
	oFirstChunk = 40 // uint32, index of its first chunk
	oChunks     = 44 // uint32, how many

	chunkSize    = 64
	cOffset      = 0  // int64
	cBlobOffset  = 8  // int64
	cBlobSize    = 16 // int64
	cSize        = 24 // uint32
	cInnerOffset = 28 // uint32
	cDigest      = 32 // [32]byte
)

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// Index finds the objects of one layer by key, in a table that [Save] made and
// that is mapped into memory. It may be used by several goroutines at once.
type Index struct {
	header
	tables []byte // the records of objects and chunks
	unmap  func() error
}

// header is the file's header, decoded.
type header struct {
	format   Format
	digest   digest.Digest
	blobSize int64
	prefetch int64
	bytes    int64
	objects  int
	chunks   int
	footer   footer
	checksum uint32 // of the tables
	tocSum   uint32 // checksum of the compressed TOC
}

// Load opens the index that Save wrote to dir. It returns an error that is
// fs.ErrNotExist if there is none and ErrDamaged if it cannot be used.
func Load(dir string) (*Index, error) {
	f, err := os.Open(filepath.Join(dir, indexName))
	if err != nil {
		return nil, fmt.Errorf("open layer index: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open layer index: %w", err)
	}
	if fi.Size() < headerSize {
		return nil, fmt.Errorf("%w: %s has %d bytes", ErrDamaged, f.Name(), fi.Size())
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s into memory: %w", f.Name(), err)
	}
	x, err := parseIndex(data)
	if err != nil {
		_ = unix.Munmap(data)
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, f.Name(), err)
	}
	x.unmap = func() error { return unix.Munmap(data) }
	return x, nil
}

// Close frees the table. Neither the index nor a view from it may be used
// afterwards.
func (x *Index) Close() error {
	unmap := x.unmap
	*x = Index{}
	if unmap == nil {
		return nil
	}
	return unmap()
}

// parseHeader checks and decodes the header of an index file of size bytes.
func parseHeader(b []byte, size int64) (h header, err error) {
	if len(b) < headerSize || string(b[:len(indexMagic)]) != indexMagic {
		return h, fmt.Errorf("it is no layer index of this version")
	}
	if checksum(b[hTables:headerSize]) != binary.LittleEndian.Uint32(b[hChecksum:]) {
		return h, fmt.Errorf("wrong checksum of its header")
	}
	word := func(at int) int64 { return int64(binary.LittleEndian.Uint64(b[at:])) }
	format := Format(binary.LittleEndian.Uint32(b[hFormat:]))
	h = header{
		format:   format,
		digest:   digest.NewDigestFromBytes(digest.SHA256, b[hDigest:hDigest+32]),
		blobSize: word(hBlobSize),
		prefetch: word(hPrefetch),
		bytes:    word(hBytes),
		checksum: binary.LittleEndian.Uint32(b[hTables:]),
		tocSum:   binary.LittleEndian.Uint32(b[hTOC:]),
		footer: footer{
			format: format, tocStart: word(hTOCStart), tocEnd: word(hTOCEnd),
			payloadEnd: word(hPayload), jsonSize: word(hJSONSize),
		},
	}
	objects, chunks := word(hObjects), word(hChunks)
	if objects < 0 || objects > chunks || chunks > MaxEntries {
		return h, fmt.Errorf("it has %d objects of %d chunks", objects, chunks)
	}
	h.objects, h.chunks = int(objects), int(chunks)
	f := h.footer
	if f.tocStart < 0 || f.tocEnd <= f.tocStart || f.tocEnd > h.blobSize || f.payloadEnd > f.tocStart ||
		f.tocEnd-f.tocStart > MaxTOCBytes || size-h.tablesEnd() != f.tocEnd-f.tocStart {
		return h, fmt.Errorf("its length of %d bytes is not as its header says", size)
	}
	return h, nil
}

func (h *header) tablesEnd() int64 {
	return headerSize + int64(h.objects)*objectSize + int64(h.chunks)*chunkSize
}

// parseIndex checks an index file's contents, so that no view of it can meet
// anything unexpected.
func parseIndex(data []byte) (*Index, error) {
	h, err := parseHeader(data, int64(len(data)))
	if err != nil {
		return nil, err
	}
	x := &Index{header: h, tables: data[headerSize:h.tablesEnd()]}
	if checksum(x.tables) != h.checksum {
		return nil, fmt.Errorf("wrong checksum of its tables")
	}
	next := 0
	for i := range x.objects {
		o := ObjectView{x, i}
		if i > 0 && bytes.Compare(x.key(i-1), x.key(i)) >= 0 {
			return nil, fmt.Errorf("its keys are not sorted")
		}
		if o.first() != next || o.NumChunks() == 0 || o.NumChunks() > x.chunks-next {
			return nil, fmt.Errorf("an object has other chunks than its own")
		}
		next += o.NumChunks()
		var size int64
		for j := range o.NumChunks() {
			c := o.Chunk(j)
			if c.Offset != size || c.Size == 0 || c.Size > MaxChunkBytes || c.InnerOffset > MaxInnerOffset ||
				c.BlobOffset < 0 || c.BlobSize <= 0 || c.BlobSize > x.footer.payloadEnd-c.BlobOffset {
				return nil, fmt.Errorf("an object has a chunk that is out of range")
			}
			size += c.Size
		}
		if size != o.Size() {
			return nil, fmt.Errorf("an object has another size than its chunks")
		}
	}
	if next != x.chunks {
		return nil, fmt.Errorf("some chunks are of no object")
	}
	return x, nil
}

// Format is the layer's format.
func (x *Index) Format() Format { return x.format }

// TOCDigest is the digest of the JSON of the layer's table of contents.
func (x *Index) TOCDigest() digest.Digest { return x.digest }

// BlobSize is the layer blob's length in bytes.
func (x *Index) BlobSize() int64 { return x.blobSize }

// PrefetchSize is that of [TOC].
func (x *Index) PrefetchSize() int64 { return x.prefetch }

// Len is the number of objects.
func (x *Index) Len() int { return x.objects }

// Bytes is the sum of the objects' sizes.
func (x *Index) Bytes() int64 { return x.bytes }

// All ranges over the objects, sorted by key.
func (x *Index) All() iter.Seq[ObjectView] {
	return func(yield func(ObjectView) bool) {
		for i := range x.objects {
			if !yield(ObjectView{x, i}) {
				return
			}
		}
	}
}

// Find returns the object with key k. It does not allocate.
func (x *Index) Find(k Key) (ObjectView, bool) {
	i := sort.Search(x.objects, func(i int) bool { return bytes.Compare(x.key(i), k[:]) >= 0 })
	if i < x.objects && Key(x.key(i)) == k {
		return ObjectView{x, i}, true
	}
	return ObjectView{}, false
}

// FindID returns the first key with that ID. It does not allocate.
func (x *Index) FindID(id uint64) (Key, bool) {
	i := sort.Search(x.objects, func(i int) bool { return binary.BigEndian.Uint64(x.key(i)) >= id })
	if i < x.objects {
		if k := Key(x.key(i)); k.ID() == id {
			return k, true
		}
	}
	return Key{}, false
}

func (x *Index) key(i int) []byte { return x.tables[i*objectSize+oKey:][:len(Key{})] }

// ObjectView is one object of an Index, read from the table as it is asked.
type ObjectView struct {
	x *Index
	i int
}

func (o ObjectView) record() []byte { return o.x.tables[o.i*objectSize:][:objectSize] }

func (o ObjectView) first() int { return int(binary.LittleEndian.Uint32(o.record()[oFirstChunk:])) }

// Key names the object.
func (o ObjectView) Key() Key { return Key(o.x.key(o.i)) }

// Size is the object's size in bytes.
func (o ObjectView) Size() int64 { return int64(binary.LittleEndian.Uint64(o.record()[oSize:])) }

// NumChunks is the number of the object's chunks, at least 1.
func (o ObjectView) NumChunks() int { return int(binary.LittleEndian.Uint32(o.record()[oChunks:])) }

// Chunk returns the chunk number i, from 0 to below NumChunks.
func (o ObjectView) Chunk(i int) Chunk {
	b := o.x.tables[o.x.objects*objectSize+(o.first()+i)*chunkSize:][:chunkSize]
	return Chunk{
		Offset:      int64(binary.LittleEndian.Uint64(b[cOffset:])),
		Size:        int64(binary.LittleEndian.Uint32(b[cSize:])),
		BlobOffset:  int64(binary.LittleEndian.Uint64(b[cBlobOffset:])),
		BlobSize:    int64(binary.LittleEndian.Uint64(b[cBlobSize:])),
		InnerOffset: int64(binary.LittleEndian.Uint32(b[cInnerOffset:])),
		Digest:      [32]byte(b[cDigest:]),
	}
}

// ChunkAt returns the number of the chunk that holds the byte off of the
// object, which must lie within it.
func (o ObjectView) ChunkAt(off int64) int {
	i, found := sort.Find(o.NumChunks(), func(i int) int { return cmp.Compare(off, o.Chunk(i).Offset) })
	if !found {
		i--
	}
	return i
}

// Object returns a copy of the object that does not depend on the Index.
func (o ObjectView) Object() Object {
	object := Object{Key: o.Key(), Size: o.Size(), Chunks: make([]Chunk, o.NumChunks())}
	for i := range object.Chunks {
		object.Chunks[i] = o.Chunk(i)
	}
	return object
}
