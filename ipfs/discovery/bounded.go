package discovery

import (
	"context"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"
	ds "github.com/ipfs/go-datastore"
	"github.com/ipfs/go-datastore/query"
)

// maxRecords is how many bytes of records the private DHT keeps for others. A
// peer that is allowed may be broken, or somebody else's by now: what it sends
// must not fill the memory. A record of a provider takes about 200 bytes.
const maxRecords = 32 << 20

// recordOverhead is what a record takes besides its key and value, in bytes.
const recordOverhead = 128

// bounded is a datastore in memory, of so many bytes: what was not used for
// longest makes room. Records are renewed all the time, so what is lost comes
// back.
type bounded struct {
	mu          sync.Mutex
	records     *lru.LRU[ds.Key, []byte]
	bytes, most int
}

var _ ds.Batching = (*bounded)(nil)

func newBounded(most int) *bounded {
	b := &bounded{most: most}
	// The number of records is bounded by their bytes.
	b.records, _ = lru.NewLRU(1+most/recordOverhead, func(k ds.Key, v []byte) { b.bytes -= cost(k, v) })
	return b
}

func cost(k ds.Key, v []byte) int { return len(k.String()) + len(v) + recordOverhead }

// Put implements [ds.Write].
func (b *bounded) Put(_ context.Context, k ds.Key, v []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.records.Remove(k)
	b.records.Add(k, v)
	b.bytes += cost(k, v)
	for b.bytes > b.most {
		b.records.RemoveOldest()
	}
	return nil
}

// Get implements [ds.Read].
func (b *bounded) Get(_ context.Context, k ds.Key) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if v, ok := b.records.Get(k); ok {
		return v, nil
	}
	return nil, ds.ErrNotFound
}

// Has implements [ds.Read].
func (b *bounded) Has(_ context.Context, k ds.Key) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.records.Contains(k), nil
}

// GetSize implements [ds.Read].
func (b *bounded) GetSize(ctx context.Context, k ds.Key) (int, error) {
	v, err := b.Get(ctx, k)
	if err != nil {
		return -1, err
	}
	return len(v), nil
}

// Delete implements [ds.Write].
func (b *bounded) Delete(_ context.Context, k ds.Key) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.records.Remove(k)
	return nil
}

// Query implements [ds.Read].
func (b *bounded) Query(_ context.Context, q query.Query) (query.Results, error) {
	b.mu.Lock()
	prefix := ds.NewKey(q.Prefix)
	var found []query.Entry
	for _, k := range b.records.Keys() {
		if q.Prefix != "" && !k.IsDescendantOf(prefix) {
			continue
		}
		v, _ := b.records.Peek(k)
		e := query.Entry{Key: k.String(), Size: len(v)}
		if !q.KeysOnly {
			e.Value = v
		}
		found = append(found, e)
	}
	b.mu.Unlock()
	return query.NaiveQueryApply(q, query.ResultsWithEntries(q, found)), nil
}

// Batch implements [ds.Batching].
func (b *bounded) Batch(context.Context) (ds.Batch, error) { return ds.NewBasicBatch(b), nil }

// Sync implements [ds.Write].
func (*bounded) Sync(context.Context, ds.Key) error { return nil }

// Close implements [ds.Datastore].
func (*bounded) Close() error { return nil }
