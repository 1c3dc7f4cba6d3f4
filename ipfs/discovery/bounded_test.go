package discovery

import (
	"errors"
	"fmt"
	"testing"

	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
	dstest "github.com/ipfs/go-datastore/test"
)

// It is a datastore as others are.
func TestBoundedIsADatastore(t *testing.T) {
	dstest.SubtestAll(t, newBounded(maxRecords))
}

// Whoever floods it, it holds no more than it may, and what was used last.
func TestBoundedHolds(t *testing.T) {
	const most = 100 << 10
	b := newBounded(most)
	kept := ds.NewKey("/providers/kept")
	if err := b.Put(t.Context(), kept, []byte("value")); err != nil {
		t.Fatal(err)
	}
	for i := range 10_000 {
		if err := b.Put(t.Context(), ds.NewKey(fmt.Sprintf("/providers/%d", i)), make([]byte, i%1000)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Get(t.Context(), kept); err != nil {
			t.Fatalf("after %d: %v", i, err)
		}
		if b.bytes > most {
			t.Fatalf("%d bytes", b.bytes)
		}
	}
	if _, err := b.Get(t.Context(), ds.NewKey("/providers/0")); !errors.Is(err, ds.ErrNotFound) {
		t.Errorf("the first is there still: %v", err)
	}
	// What is larger than all of it is not kept, and what it counted is given back.
	if err := b.Put(t.Context(), ds.NewKey("/big"), make([]byte, 2*most)); err != nil {
		t.Fatal(err)
	}
	r, err := b.Query(t.Context(), query.Query{})
	if err != nil {
		t.Fatal(err)
	}
	left, err := r.Rest()
	if err != nil || len(left) != 0 || b.bytes != 0 {
		t.Errorf("%d records of %d bytes are left, %v", len(left), b.bytes, err)
	}
}
