package car_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/car"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
)

func put(t testing.TB, m *blockstest.Memory, bs ...blocks.Block) {
	t.Helper()
	for _, b := range bs {
		if err := m.Put(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
}

// A CAR that was written holds every block once, is the same every time, and
// is read again; one that is cut off is refused, wherever.
func TestCAR(t *testing.T) {
	m := blockstest.NewMemory()
	data := blockstest.Random(t, 1, 5<<20).RawData()
	data = append(data, data...) // every leaf twice
	root, _, err := importer.File(t.Context(), bytes.NewReader(data), m.Put)
	if err != nil {
		t.Fatal(err)
	}
	other := blockstest.Random(t, 2, 1000)
	empty, err := cid.NewPrefixV1(cid.DagProtobuf, multihash.SHA2_256).Sum(nil)
	if err != nil {
		t.Fatal(err)
	}
	put(t, m, other)
	parts := []cid.Cid{other.Cid(), root, root, empty}
	var out, again bytes.Buffer
	if err := car.Write(t.Context(), m, other.Cid(), parts, ipfs.Want{}, &out); err != nil {
		t.Fatal(err)
	}
	if err := car.Write(t.Context(), m, other.Cid(), parts, ipfs.Want{}, &again); err != nil || !bytes.Equal(out.Bytes(), again.Bytes()) {
		t.Errorf("written again: not the same, %v", err)
	}
	count, err := readCAR(t, out.Bytes(), other.Cid())
	if err != nil || count != m.Len()+1 { // and the empty block
		t.Errorf("%d blocks, want %d; %v", count, m.Len()+1, err)
	}
	whole := out.Bytes()
	for _, n := range []int{0, 1, 10, 60, 100, len(whole) / 2, len(whole) - 1} {
		if got, err := readCAR(t, whole[:n], other.Cid()); !errors.Is(err, car.ErrBad) && got == count {
			t.Errorf("cut to %d of %d bytes: %d blocks, %v", n, len(whole), got, err)
		}
	}
	if _, err := readCAR(t, []byte("PK\x03\x04 this is no CAR at all, but something else"), other.Cid()); !errors.Is(err, car.ErrBad) {
		t.Errorf("no CAR: %v", err)
	}

	m.Delete(root)
	var missing *ipfs.UnavailableError
	if err := car.Write(t.Context(), m, other.Cid(), parts, ipfs.Want{}, io.Discard); !errors.As(err, &missing) {
		t.Errorf("a block is missing: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := car.Write(ctx, m, other.Cid(), parts, ipfs.Want{}, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// readCAR counts the blocks of a CAR, each verified.
func readCAR(t testing.TB, data []byte, root cid.Cid) (n int, err error) {
	t.Helper()
	r, err := car.NewReader(bytes.NewReader(data))
	if err != nil {
		return 0, err
	}
	if len(r.Roots) != 1 || r.Roots[0] != root {
		t.Errorf("roots %v, want %s", r.Roots, root)
	}
	for {
		b, err := r.Next()
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		if err := ipfs.Verify(b.Cid(), b.RawData()); err != nil {
			t.Errorf("block %d: %v", n, err)
		}
		n++
	}
}

// A CAR of a stranger is read within bounds, or refused.
func FuzzCARReader(f *testing.F) {
	m := blockstest.NewMemory()
	b := blockstest.Random(f, 1, 100)
	put(f, m, b)
	var good bytes.Buffer
	if err := car.Write(f.Context(), m, b.Cid(), []cid.Cid{b.Cid()}, ipfs.Want{}, &good); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add([]byte{0x0a, 0xa1, 0x67})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := car.NewReader(bytes.NewReader(data))
		for err == nil {
			var b blocks.Block
			if b, err = r.Next(); err == nil && len(b.RawData()) > len(data) {
				t.Errorf("a block of %d bytes from a CAR of %d", len(b.RawData()), len(data))
			}
		}
		if err != io.EOF && !errors.Is(err, car.ErrBad) {
			t.Errorf("%v is not ErrBadCAR", err)
		}
	})
}
