package pins

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/ipfs/go-cid"
)

// A pin's file, integers in little-endian order:
//
//	magic, with the version        8 bytes
//	length of the header           u32
//	number of blocks               u32
//	header                         JSON
//	SHA-256 of all before it       32 bytes
//	number × key of a block        u64, rising
//	SHA-256 of the keys            32 bytes
//
// So a list of pins reads the beginnings alone.
const (
	magic     = "ipfspin\x01"
	fixed     = 8 + 4 + 4
	maxHeader = 2 << 20
	keyBytes  = 8
)

// header is the JSON in a pin's file.
type header struct {
	Root  string    `json:"root"`
	Name  string    `json:"name,omitempty"`
	Parts []string  `json:"parts"`
	Time  time.Time `json:"time"`
	Bytes int64     `json:"bytes"`
}

func encode(p Pin, keys []uint64) ([]byte, error) {
	if err := check(p); err != nil {
		return nil, err
	}
	h := header{Root: p.Root.String(), Name: p.Name, Time: p.Time.UTC(), Bytes: p.Bytes}
	for _, part := range p.Parts {
		h.Parts = append(h.Parts, part.String())
	}
	text, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	if len(text) > maxHeader {
		return nil, fmt.Errorf("%w: its description has %d bytes, at most %d", ErrLimit, len(text), maxHeader)
	}
	raw := make([]byte, 0, fixed+len(text)+sha256.Size+len(keys)*keyBytes+sha256.Size)
	raw = append(raw, magic...)
	raw = binary.LittleEndian.AppendUint32(raw, uint32(len(text)))
	raw = binary.LittleEndian.AppendUint32(raw, uint32(len(keys)))
	raw = append(raw, text...)
	sum := sha256.Sum256(raw)
	raw = append(raw, sum[:]...)
	begin := len(raw)
	for _, k := range keys {
		raw = binary.LittleEndian.AppendUint64(raw, k)
	}
	sum = sha256.Sum256(raw[begin:])
	return append(raw, sum[:]...), nil
}

// check holds a pin against the limits.
func check(p Pin) error {
	switch {
	case len(p.Name) > MaxName:
		return fmt.Errorf("%w: its name has %d bytes, at most %d", ErrLimit, len(p.Name), MaxName)
	case len(p.Parts) > MaxParts:
		return fmt.Errorf("%w: it has %d parts, at most %d", ErrLimit, len(p.Parts), MaxParts)
	case p.Blocks > MaxBlocks:
		return fmt.Errorf("%w: it has %d blocks, at most %d", ErrLimit, p.Blocks, MaxBlocks)
	case !slices.ContainsFunc(p.Parts, func(c cid.Cid) bool { return normal(c) == normal(p.Root) }):
		return errors.New("a pin's root is one of its parts")
	}
	return nil
}

// sizes reads the fixed beginning of a file.
func sizes(b []byte) (headerLen, blocks int, err error) {
	if len(b) < fixed || string(b[:len(magic)]) != magic {
		return 0, 0, fmt.Errorf("%w: no pin of this version", ErrDamaged)
	}
	headerLen, blocks = int(binary.LittleEndian.Uint32(b[8:])), int(binary.LittleEndian.Uint32(b[12:]))
	if headerLen > maxHeader || blocks > MaxBlocks {
		return 0, 0, fmt.Errorf("%w: it is over a limit", ErrDamaged)
	}
	return headerLen, blocks, nil
}

// decode reads the part of a file before the keys: raw, and nothing more.
func decode(raw []byte) (Pin, error) {
	headerLen, blocks, err := sizes(raw)
	if err != nil {
		return Pin{}, err
	}
	bad := func(err error) (Pin, error) { return Pin{}, fmt.Errorf("%w: %w", ErrDamaged, err) }
	if len(raw) != fixed+headerLen+sha256.Size {
		return bad(io.ErrUnexpectedEOF)
	}
	body := raw[:fixed+headerLen]
	if sum := sha256.Sum256(body); string(sum[:]) != string(raw[len(body):]) {
		return bad(errors.New("its checksum is wrong"))
	}
	var h header
	if err := json.Unmarshal(body[fixed:], &h); err != nil {
		return bad(err)
	}
	p := Pin{Name: h.Name, Time: h.Time, Bytes: h.Bytes, Blocks: blocks}
	if p.Root, err = cid.Decode(h.Root); err != nil {
		return bad(err)
	}
	for _, s := range h.Parts {
		c, err := cid.Decode(s)
		if err != nil {
			return bad(err)
		}
		p.Parts = append(p.Parts, c)
	}
	if err := check(p); err != nil {
		return bad(err)
	}
	return p, nil
}

// decodeKeys checks the part of a file from the keys on, and returns them.
func decodeKeys(raw []byte, blocks int) ([]byte, error) {
	n := blocks * keyBytes
	if len(raw) != n+sha256.Size {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, io.ErrUnexpectedEOF)
	}
	if sum := sha256.Sum256(raw[:n]); string(sum[:]) != string(raw[n:]) {
		return nil, fmt.Errorf("%w: its checksum is wrong", ErrDamaged)
	}
	for i := keyBytes; i < n; i += keyBytes {
		if binary.LittleEndian.Uint64(raw[i-keyBytes:]) >= binary.LittleEndian.Uint64(raw[i:]) {
			return nil, fmt.Errorf("%w: its keys are out of order", ErrDamaged)
		}
	}
	return raw[:n:n], nil
}

// open opens a pin's file and reads its fixed beginning.
func (d *Dir) open(root cid.Cid) (f *os.File, headerLen, blocks int, err error) {
	if f, err = os.Open(d.file(root)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = ErrNotPinned
		}
		return nil, 0, 0, err
	}
	var b [fixed]byte
	if _, err = io.ReadFull(f, b[:]); err != nil {
		err = cutOff(err)
	} else {
		headerLen, blocks, err = sizes(b[:])
	}
	if err == nil {
		var info fs.FileInfo
		info, err = f.Stat()
		if err == nil && info.Size() != int64(fixed+headerLen+sha256.Size+blocks*keyBytes+sha256.Size) {
			err = fmt.Errorf("%w: its length is wrong", ErrDamaged)
		}
	}
	if err != nil {
		return nil, 0, 0, errors.Join(err, f.Close())
	}
	return f, headerLen, blocks, nil
}

// head reads a pin without its keys.
func (d *Dir) head(root cid.Cid) (p Pin, err error) {
	defer func() { err = d.named(root, err) }()
	f, headerLen, _, err := d.open(root)
	if err != nil {
		return Pin{}, err
	}
	defer f.Close()
	raw := make([]byte, fixed+headerLen+sha256.Size)
	if _, err := f.ReadAt(raw, 0); err != nil {
		return Pin{}, cutOff(err)
	}
	if p, err = decode(raw); err != nil {
		return Pin{}, err
	}
	if p.Root != root {
		return Pin{}, fmt.Errorf("%w: it is of %s", ErrDamaged, p.Root)
	}
	return p, nil
}

// keys reads the keys of a pin.
func (d *Dir) keys(root cid.Cid) (keys []byte, err error) {
	defer func() { err = d.named(root, err) }()
	f, headerLen, blocks, err := d.open(root)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw := make([]byte, blocks*keyBytes+sha256.Size)
	if _, err := f.ReadAt(raw, int64(fixed+headerLen+sha256.Size)); err != nil {
		return nil, cutOff(err)
	}
	return decodeKeys(raw, blocks)
}

func (d *Dir) named(root cid.Cid, err error) error {
	if err != nil {
		return fmt.Errorf("pins: %s: %w", d.file(root), err)
	}
	return nil
}

// cutOff tells an end that came too early from a failure to read.
func cutOff(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("%w: %w", ErrDamaged, io.ErrUnexpectedEOF)
	}
	return err
}
