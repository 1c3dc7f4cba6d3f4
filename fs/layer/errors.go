package layer

import (
	"errors"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer/internal/tocjson"
)

// What reading a layer can meet, beside the errors of its [Source], which are
// passed on wrapped. After each of the first five a layer can still be
// unpacked as any layer is.
var (
	// ErrNotStargz: the blob does not end in a footer that is known, so it is
	// no eStargz or zstd:chunked layer.
	ErrNotStargz = errors.New("not an eStargz or zstd:chunked layer")
	// ErrTOCDigest: the TOC is not the one that was asked for.
	ErrTOCDigest = errors.New("wrong TOC digest")
	// ErrInvalid: the TOC is malformed, or says what no layer can mean.
	ErrInvalid = errors.New("invalid table of contents")
	// ErrLimit: the TOC is over one of the limits in this package.
	ErrLimit = errors.New("table of contents over a limit")
	// ErrNotLazy: the TOC may be right but does not tell enough, or not what
	// this package can do, for the layer to be mounted lazily.
	ErrNotLazy = errors.New("layer cannot be mounted lazily")

	// ErrChunk: a chunk does not decompress, or not to its size.
	ErrChunk = errors.New("damaged chunk")
	// ErrChunkDigest: a chunk has other bytes than the TOC says. errors.Is
	// holds for ErrChunk as well.
	ErrChunkDigest = errors.New("wrong chunk digest")
	// ErrDamaged: what [Save] wrote is there but cannot be used; it is to be
	// made anew from the layer.
	ErrDamaged = errors.New("damaged layer index")
)

// Limits on what a TOC may hold, checked before the memory is spent. They are
// far above what layers in use need.
const (
	MaxTOCBytes     = 64 << 20  // compressed TOC
	MaxTOCJSONBytes = 512 << 20 // the same, decompressed
	MaxEntries      = 4 << 20   // elements of the TOC, chunks included
	MaxNameBytes    = 255       // one component of a name
	MaxDepth        = 4096      // components of a name
	// MaxXattrBytes bounds one inode's xattrs, names and values together.
	MaxXattrBytes = tocjson.MaxXattrBytes
	// MaxChunkBytes bounds a chunk, because a chunk is decompressed as a whole
	// into memory before any byte of it can be trusted. Tools make chunks of 4
	// MiB at most, but zstd:chunked ones are content-defined without an upper
	// bound.
	MaxChunkBytes = 64 << 20
	// MaxInnerOffset bounds what is decompressed and thrown away before a
	// chunk that shares its stream with others.
	MaxInnerOffset = 64 << 20
)

// maxLinkBytes is the longest symlink target that Linux takes.
const maxLinkBytes = 4095
