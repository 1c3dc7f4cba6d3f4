package names

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/ipfs/boxo/ipns"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/atomicfile"
)

// record is a record that was verified.
type record struct {
	raw   []byte
	value string
	seq   uint64
	ttl   time.Duration
	until time.Time
}

func (r record) resolved(stale bool) Resolved {
	return Resolved{Value: r.value, Sequence: r.seq, Until: r.until, Stale: stale}
}

// parseRecord verifies a record: signature, size, and that it has not ended.
func parseRecord(id ipns.Name, raw []byte) (record, error) {
	r, err := readRecord(id, raw)
	if err == nil && !r.until.After(time.Now()) {
		return record{}, fmt.Errorf("names: record of %s: %w", id, ipns.ErrExpiredRecord)
	}
	return r, err
}

// readRecord is parseRecord, but for the end.
func readRecord(id ipns.Name, raw []byte) (r record, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("names: record of %s: %w", id, err)
		}
	}()
	if len(raw) > ipns.MaxRecordSize {
		return r, fmt.Errorf("%d bytes: %w", len(raw), ipfs.ErrTooLarge)
	}
	rec, err := ipns.UnmarshalRecord(raw)
	if err != nil {
		return r, err
	}
	if err := ipns.ValidateWithName(rec, id); err != nil && !errors.Is(err, ipns.ErrExpiredRecord) {
		return r, err
	}
	p, err := rec.Value()
	if err != nil {
		return r, err
	}
	if p, err = ipfsPath(p.String()); err != nil {
		return r, err
	}
	r = record{raw: raw, value: p.String()}
	if r.seq, err = rec.Sequence(); err != nil {
		return r, err
	}
	if r.until, err = rec.Validity(); err != nil {
		return r, err
	}
	if r.ttl, err = rec.TTL(); err != nil {
		r.ttl = 0 // it is a hint, and may be missing
	}
	return r, nil
}

func (n *Names) path(id ipns.Name) string { return filepath.Join(n.dir, id.String()+".record") }

// kept returns the last record known of a name, even if it has ended. The error
// for a name without one is [ErrNotFound]; a damaged file counts as none, for it
// can be got again from others.
func (n *Names) kept(id ipns.Name) (record, error) {
	f, err := os.Open(n.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, fmt.Errorf("names: %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return record{}, fmt.Errorf("names: %w", err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, int64(ipns.MaxRecordSize)+1))
	if err != nil {
		return record{}, fmt.Errorf("names: %w", err)
	}
	r, err := readRecord(id, raw)
	if err != nil {
		n.c.Log.Error("a kept record of a name is damaged", "path", n.path(id), "err", err)
		return record{}, fmt.Errorf("names: %s: %w", id, ErrNotFound)
	}
	return r, nil
}

func (n *Names) keep(id ipns.Name, raw []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := atomicfile.Write(n.path(id), raw, 0o600); err != nil {
		return fmt.Errorf("names: %w", err)
	}
	return nil
}
