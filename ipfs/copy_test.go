package ipfs_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
)

// Copy ends with the first error, of the blocks or of the writer, and writes
// nothing after it.
func TestCopyErrors(t *testing.T) {
	m := blockstest.NewMemory()
	data := blockstest.Random(t, 1, 40<<20).RawData()
	root, size, err := importer.File(t.Context(), bytes.NewReader(data), m.Put)
	if err != nil {
		t.Fatal(err)
	}
	f, err := ipfs.OpenFile(t.Context(), m, "", root, size)
	if err != nil {
		t.Fatal(err)
	}
	mine := errors.New("mine")
	w := &failing{left: 9 << 20, err: mine}
	if err := f.Copy(t.Context(), w, 0, size); err != mine || w.after {
		t.Errorf("Copy: %v, want the writer's; written after it: %v", err, w.after)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Copy(ctx, io.Discard, 0, size); !errors.Is(err, context.Canceled) {
		t.Errorf("Copy: %v, want context.Canceled", err)
	}
	var leaves []cid.Cid
	for l := range f.Leaves() {
		leaves = append(leaves, l.CID)
	}
	m.Delete(leaves[len(leaves)-1])
	var got bytes.Buffer
	var missing *ipfs.UnavailableError
	if err := f.Copy(t.Context(), &got, 0, size); !errors.As(err, &missing) || !bytes.HasPrefix(data, got.Bytes()) {
		t.Errorf("Copy: %v after %d bytes, want an UnavailableError", err, got.Len())
	}
}

// failing is a writer that takes some bytes, and then fails.
type failing struct {
	left  int
	err   error
	after bool
	done  bool
}

func (w *failing) Write(p []byte) (int, error) {
	w.after = w.done
	if w.left -= len(p); w.left < 0 {
		w.done = true
		return 0, w.err
	}
	return len(p), nil
}
