package ipfs

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"

	"github.com/ipfs/go-cid"
)

// A leaf table is one flat run of bytes, the same in memory and on disk, with
// integers in little-endian order:
//
//	magic, with the version            8 bytes
//	number of leaves n                 u32
//	length of the CIDs' bytes          u32
//	n × end of the leaf in the file    u64, bytes; rising
//	n × end of the leaf's CID          u32, in the CIDs' bytes; rising
//	length of the root's CID           u32
//	the leaves' CIDs, then the root's
//	SHA-256 of all before it           32 bytes
const (
	tableMagic   = "ipfslf\x00\x01"
	tableHeader  = 16
	tablePerLeaf = 8 + 4
	maxCIDBytes  = 160 // of one CID; the longest allowed is an identity CID of about 135
	maxTable     = tableHeader + maxLeaves*(tablePerLeaf+maxCIDBytes) + 4 + maxCIDBytes + sha256.Size
)

// errTable is returned for a table on disk that cannot be used: it is damaged,
// of another version, or another root's.
var errTable = errors.New("unusable leaf table")

// table gives the leaf at an offset without decoding more than that leaf.
type table struct {
	raw  []byte // as on disk
	n    int    // leaves
	ends []byte // n × u64
	cuts []byte // n × u32
	cids []byte
}

// newTable encodes the leaves of root's file.
func newTable(root cid.Cid, leaves []part) *table {
	var cidBytes int
	for _, l := range leaves {
		cidBytes += l.cid.ByteLen()
	}
	raw := make([]byte, 0, tableHeader+len(leaves)*tablePerLeaf+4+cidBytes+root.ByteLen()+sha256.Size)
	raw = append(raw, tableMagic...)
	raw = binary.LittleEndian.AppendUint32(raw, uint32(len(leaves)))
	raw = binary.LittleEndian.AppendUint32(raw, uint32(cidBytes))
	var end uint64
	for _, l := range leaves {
		end += uint64(l.size)
		raw = binary.LittleEndian.AppendUint64(raw, end)
	}
	var cut uint32
	for _, l := range leaves {
		cut += uint32(l.cid.ByteLen())
		raw = binary.LittleEndian.AppendUint32(raw, cut)
	}
	raw = binary.LittleEndian.AppendUint32(raw, uint32(root.ByteLen()))
	for _, l := range leaves {
		raw = append(raw, l.cid.KeyString()...)
	}
	raw = append(raw, root.KeyString()...)
	sum := sha256.Sum256(raw)
	raw = append(raw, sum[:]...)
	return sliceTable(raw, len(leaves), cidBytes)
}

func sliceTable(raw []byte, n, cidBytes int) *table {
	t := &table{raw: raw, n: n}
	rest := raw[tableHeader:]
	t.ends, rest = rest[:8*n], rest[8*n:]
	t.cuts, rest = rest[:4*n], rest[4*n:]
	t.cids = rest[4 : 4+cidBytes]
	return t
}

// parseTable checks every part of a table of root's file; errors wrap errTable.
func parseTable(root cid.Cid, raw []byte) (*table, error) {
	bad := func(what string) (*table, error) { return nil, fmt.Errorf("%w: %s", errTable, what) }
	if len(raw) < tableHeader+4+sha256.Size || string(raw[:8]) != tableMagic {
		return bad("no leaf table of this version")
	}
	n, cidBytes := int(binary.LittleEndian.Uint32(raw[8:])), int(binary.LittleEndian.Uint32(raw[12:]))
	if n > maxLeaves || cidBytes > maxLeaves*maxCIDBytes ||
		len(raw) != tableHeader+n*tablePerLeaf+4+cidBytes+root.ByteLen()+sha256.Size {
		return bad("its length is wrong")
	}
	body := raw[:len(raw)-sha256.Size]
	if sum := sha256.Sum256(body); string(sum[:]) != string(raw[len(body):]) {
		return bad("its checksum is wrong")
	}
	if string(body[len(body)-root.ByteLen():]) != root.KeyString() {
		return bad("it is of another file")
	}
	t := sliceTable(raw, n, cidBytes)
	var end uint64
	var cut uint32
	for i := range n {
		e, c := binary.LittleEndian.Uint64(t.ends[8*i:]), binary.LittleEndian.Uint32(t.cuts[4*i:])
		if e <= end || e-end > MaxBlockSize || c <= cut || int(c) > cidBytes {
			return bad("its leaves are out of order")
		}
		if _, err := cid.Cast(t.cids[cut:c]); err != nil {
			return bad("a CID is malformed")
		}
		end, cut = e, c
	}
	if int(cut) != cidBytes {
		return bad("its CIDs are out of order")
	}
	return t, nil
}

func (t *table) end(i int) int64 { return int64(binary.LittleEndian.Uint64(t.ends[8*i:])) }

func (t *table) start(i int) int64 {
	if i == 0 {
		return 0
	}
	return t.end(i - 1)
}

func (t *table) size() int64 {
	return t.start(t.n)
}

// at returns the index of the leaf that holds the byte at off, which must be
// within the file.
func (t *table) at(off int64) int {
	return sort.Search(t.n, func(i int) bool { return t.end(i) > off })
}

func (t *table) cid(i int) (cid.Cid, error) {
	var start uint32
	if i > 0 {
		start = binary.LittleEndian.Uint32(t.cuts[4*(i-1):])
	}
	return cid.Cast(t.cids[start:binary.LittleEndian.Uint32(t.cuts[4*i:])])
}

// TableSuffix ends the name of a leaf table's file, which begins with the CID of
// the file's root.
const TableSuffix = ".leaves"

func tablePath(dir string, root cid.Cid) string {
	return filepath.Join(dir, root.String()+TableSuffix)
}

// loadTable reads the table of root's file. Without one the error is
// [fs.ErrNotExist]; with one that is damaged, errTable.
func loadTable(dir string, root cid.Cid) (*table, error) {
	f, err := os.Open(tablePath(dir, root))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxTable {
		return nil, fmt.Errorf("%w: %s is no table", errTable, f.Name())
	}
	raw := make([]byte, info.Size())
	if _, err := io.ReadFull(f, raw); err != nil {
		return nil, fmt.Errorf("%w: %w", errTable, err)
	}
	return parseTable(root, raw)
}

// save puts the table into dir in one step. It is not synced: after a crash a
// damaged one is noticed and made again.
func (t *table) save(dir string, root cid.Cid) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".leaves-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreMissing(os.Remove(f.Name())))
		}
	}()
	if _, err := f.Write(t.raw); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), tablePath(dir, root))
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
