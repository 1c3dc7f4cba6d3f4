// Package tocjson reads the JSON of an eStargz or zstd:chunked table of
// contents as a stream, one entry at a time and without an allocation per
// entry, because a table can have millions of entries and reading it is on the
// path to a container's first instruction.
//
// It knows the grammar and the fields' types only. What an entry may say is
// for its caller (package layer) to check.
package tocjson

import (
	"errors"
	"fmt"
	"io"
)

// Errors that [Decoder.Next] returns, beside the reader's own.
var (
	// ErrSyntax is returned for what is no JSON, or not a TOC's.
	ErrSyntax = errors.New("malformed TOC JSON")
	// ErrTooLong is returned for what is over MaxString or MaxXattrBytes.
	ErrTooLong = errors.New("TOC JSON over a limit")
)

const (
	// MaxString is the longest string, in bytes, that is read into memory: a
	// name of 4096 components of 255 bytes fits.
	MaxString = 1 << 20
	// MaxXattrBytes bounds the extended attributes of one entry: the bytes of
	// their names and values, and one more for each.
	MaxXattrBytes = 64 << 10
)

// Entry is one element of the TOC's entries, as it stands there. Its slices
// are valid until the next call of [Decoder.Next]. Strings are as encoding/json
// decodes them: what is not UTF-8 has become U+FFFD.
type Entry struct {
	Name     []byte
	Type     []byte
	LinkName []byte
	ModTime  []byte
	// RawName and RawLinkName are the names' true bytes where JSON cannot hold
	// them (fields nameBytes and linkNameBytes, an addition of ours); empty
	// where they are not given.
	RawName     []byte
	RawLinkName []byte

	Digest      []byte
	ChunkDigest []byte
	Xattrs      []Xattr

	Size, Mode, UID, GID   int64
	DevMajor, DevMinor     int64
	Offset, InnerOffset    int64
	ChunkOffset, ChunkSize int64
	// MemberSize is how many compressed bytes the stream at Offset has, where
	// the next one that the TOC names does not follow at once (field memberSize,
	// an addition of ours); 0 where it is not given.
	MemberSize int64
}

// Xattr is one extended attribute of an Entry.
type Xattr struct {
	Name, Value []byte
}

// reset empties e and keeps its buffers.
func (e *Entry) reset() {
	*e = Entry{
		Name: e.Name[:0], Type: e.Type[:0], LinkName: e.LinkName[:0], ModTime: e.ModTime[:0],
		RawName: e.RawName[:0], RawLinkName: e.RawLinkName[:0],
		Digest: e.Digest[:0], ChunkDigest: e.ChunkDigest[:0], Xattrs: e.Xattrs[:0],
	}
}

// The decoder's places in the document.
const (
	atStart = iota
	inTOC
	inEntries
	atEnd
)

// Decoder reads one TOC. Make it with [NewDecoder].
type Decoder struct {
	r       io.Reader
	buf     []byte
	pos     int   // next byte in buf
	end     int   // end of what was read into buf
	read    int64 // bytes read before buf[0]
	readErr error

	state   int
	first   bool // of the entries or of the TOC's fields, whichever is open
	entries bool // the entries were seen
	version int64
	key     []byte
	base64  []byte
}

// NewDecoder returns a decoder that reads one TOC from r, and r to its end.
func NewDecoder(r io.Reader) *Decoder {
	return &Decoder{r: r, buf: make([]byte, 64<<10)}
}

// Version is the TOC's version, 0 if it has none. It is known when Next has
// returned io.EOF.
func (d *Decoder) Version() int64 { return d.version }

// Next reads the next entry into e. It returns io.EOF after the last one when
// the document ended as it should, ErrSyntax, ErrTooLong, or the reader's
// error.
func (d *Decoder) Next(e *Entry) error {
	e.reset()
	if d.state == atStart {
		if err := d.expect('{'); err != nil {
			return err
		}
		d.state, d.first = inTOC, true
	}
	for {
		switch d.state {
		case inTOC:
			if err := d.tocField(); err != nil {
				return err
			}
		case inEntries:
			more, err := d.element(']')
			if err != nil {
				return err
			}
			if more {
				return d.entry(e)
			}
			d.state, d.first = inTOC, false
		default:
			return io.EOF
		}
	}
}

// tocField reads one field of the TOC itself, up to the first entry if it is
// the entries.
func (d *Decoder) tocField() error {
	more, err := d.element('}')
	if err != nil {
		return err
	}
	if !more {
		d.state = atEnd
		switch _, err := d.token(); {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
		return d.syntax("more data after the TOC")
	}
	if err := d.readKey(); err != nil {
		return err
	}
	switch string(d.key) {
	case "version":
		return d.integer(&d.version)
	case "entries":
		if d.entries {
			return d.syntax("entries are given twice")
		}
		d.entries = true
		if null, err := d.null(); null || err != nil {
			return err
		}
		if err := d.expect('['); err != nil {
			return err
		}
		d.state, d.first = inEntries, true
		return nil
	default:
		return d.skip(0)
	}
}

// One bit for each field of an entry, to find one given twice.
const (
	fName uint32 = 1 << iota
	fType
	fLinkName
	fModTime
	fRawName
	fRawLinkName
	fDigest
	fChunkDigest
	fXattrs
	fSize
	fMode
	fUID
	fGID
	fDevMajor
	fDevMinor
	fOffset
	fInnerOffset
	fChunkOffset
	fChunkSize
	fMemberSize
)

func (d *Decoder) entry(e *Entry) error {
	if err := d.expect('{'); err != nil {
		return err
	}
	var seen uint32
	for d.first = true; ; {
		more, err := d.element('}')
		if err != nil {
			return err
		}
		if !more {
			d.first = false // of the entries again
			return nil
		}
		if err := d.readKey(); err != nil {
			return err
		}
		field, err := d.entryField(e)
		if err != nil {
			return err
		}
		if seen&field != 0 {
			return d.syntax("a field of an entry is given twice")
		}
		seen |= field
	}
}

// entryField reads the value of the field d.key into e and returns the field's
// bit, 0 if it is unknown.
func (d *Decoder) entryField(e *Entry) (uint32, error) {
	switch string(d.key) {
	case "name":
		return fName, d.text(&e.Name)
	case "type":
		return fType, d.text(&e.Type)
	case "linkName":
		return fLinkName, d.text(&e.LinkName)
	case "modtime":
		return fModTime, d.text(&e.ModTime)
	case "nameBytes":
		return fRawName, d.bytes(&e.RawName)
	case "linkNameBytes":
		return fRawLinkName, d.bytes(&e.RawLinkName)
	case "digest":
		return fDigest, d.text(&e.Digest)
	case "chunkDigest":
		return fChunkDigest, d.text(&e.ChunkDigest)
	case "xattrs":
		return fXattrs, d.xattrs(e)
	case "size":
		return fSize, d.integer(&e.Size)
	case "mode":
		return fMode, d.integer(&e.Mode)
	case "uid":
		return fUID, d.integer(&e.UID)
	case "gid":
		return fGID, d.integer(&e.GID)
	case "devMajor":
		return fDevMajor, d.integer(&e.DevMajor)
	case "devMinor":
		return fDevMinor, d.integer(&e.DevMinor)
	case "offset":
		return fOffset, d.integer(&e.Offset)
	case "innerOffset":
		return fInnerOffset, d.integer(&e.InnerOffset)
	case "chunkOffset":
		return fChunkOffset, d.integer(&e.ChunkOffset)
	case "chunkSize":
		return fChunkSize, d.integer(&e.ChunkSize)
	case "memberSize":
		return fMemberSize, d.integer(&e.MemberSize)
	default:
		return 0, d.skip(0)
	}
}

func (d *Decoder) xattrs(e *Entry) error {
	if null, err := d.null(); null || err != nil {
		return err
	}
	if err := d.expect('{'); err != nil {
		return err
	}
	total := 0
	for d.first = true; ; {
		more, err := d.element('}')
		if err != nil {
			return err
		}
		if !more {
			d.first = false // of the entry again
			return nil
		}
		if err := d.readKey(); err != nil {
			return err
		}
		var x *Xattr
		if n := len(e.Xattrs); n < cap(e.Xattrs) {
			e.Xattrs = e.Xattrs[:n+1]
			x = &e.Xattrs[n]
		} else {
			e.Xattrs = append(e.Xattrs, Xattr{})
			x = &e.Xattrs[n]
		}
		x.Name = append(x.Name[:0], d.key...)
		x.Value = x.Value[:0]
		if err := d.bytes(&x.Value); err != nil {
			return err
		}
		if total += len(x.Name) + len(x.Value) + 1; total > MaxXattrBytes {
			return fmt.Errorf("%w: extended attributes of more than %d bytes", ErrTooLong, MaxXattrBytes)
		}
	}
}

// syntax returns an ErrSyntax that says where and what.
func (d *Decoder) syntax(what string) error {
	return fmt.Errorf("%w at byte %d: %s", ErrSyntax, d.read+int64(d.pos), what)
}
