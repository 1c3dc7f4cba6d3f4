package serve_test

import (
	"bytes"
	"context"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/node"
	"github.com/ipfs-stargz/ipfs-stargz/serve"
)

// A root that is the empty block, or that carries itself, is always here.
func TestDagImportKnownRoots(t *testing.T) {
	d := start(t)
	for _, prefix := range []cid.Prefix{cid.NewPrefixV1(cid.Raw, multihash.SHA2_256), cid.NewPrefixV1(cid.Raw, multihash.IDENTITY)} {
		c, err := prefix.Sum(nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := blocks.NewBlockWithCid(nil, c)
		if err != nil {
			t.Fatal(err)
		}
		err = d.client.ImportCAR(t.Context(), []cid.Cid{c}, func(put ipfs.PutFunc) error { return put(t.Context(), b) })
		if err != nil {
			t.Errorf("%s: %v", c, err)
		}
	}
}

// The daemon's own error reaches the caller of ImportCAR in the middle of a
// long stream.
func TestImportRefusedMidStream(t *testing.T) {
	d := start(t)
	good := blockstest.Random(t, 1, 100)
	lie, err := blocks.NewBlockWithCid([]byte("other"), good.Cid())
	if err != nil {
		t.Fatal(err)
	}
	err = d.client.ImportCAR(t.Context(), nil, func(put ipfs.PutFunc) error {
		if err := put(t.Context(), lie); err != nil {
			return err
		}
		for i := range 300 {
			if err := put(t.Context(), blockstest.Random(t, uint64(i+10), 256<<10)); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "does not match its CID") {
		t.Errorf("ImportCAR: %v", err)
	}
}

// What a CAR holds is not held in memory: 64 MiB go through a store that
// counts what is on the way.
func TestDagImportStreams(t *testing.T) {
	st := &countingStore{Memory: blockstest.NewMemory()}
	_, client := listen(t, serve.NewHandler(serve.Config{Store: st, Swarm: fakeSwarm{}}))
	const size = 256 << 10
	var most int64
	err := client.ImportCAR(t.Context(), nil, func(put ipfs.PutFunc) error {
		for i := range int64(256) {
			if err := put(t.Context(), blockstest.Random(t, uint64(i), size)); err != nil {
				return err
			}
			most = max(most, (i+1)*size-st.stored())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if st.stored() != 256*size {
		t.Errorf("%d bytes were stored", st.stored())
	}
	if most > 48<<20 {
		t.Errorf("up to %d bytes were on the way", most)
	}
}

type countingStore struct {
	*blockstest.Memory
	mu sync.Mutex
	n  int64
}

func (c *countingStore) Put(_ context.Context, bs ...blocks.Block) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range bs {
		c.n += int64(len(b.RawData()))
	}
	return nil
}

func (c *countingStore) stored() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func (c *countingStore) Has(context.Context, cid.Cid) (bool, error) { return true, nil }
func (c *countingStore) Sync(context.Context) error                 { return nil }

// FuzzDagImport gives the parser of forms and CARs any bytes.
func FuzzDagImport(f *testing.F) {
	h := serve.NewHandler(serve.Config{Store: &countingStore{Memory: blockstest.NewMemory()}, Swarm: fakeSwarm{}})
	f.Add([]byte("\x11\xa2eroots\x80gversion\x01"))
	f.Add([]byte("\x0a\xa1gversion\x02"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, car []byte) {
		var b bytes.Buffer
		w := multipart.NewWriter(&b)
		p, err := w.CreateFormFile("file", "x.car")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Write(car); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest(http.MethodPost, "/api/v0/dag/import", &b)
		r.Header.Set("Content-Type", w.FormDataContentType())
		out := httptest.NewRecorder()
		h.ServeHTTP(out, r)
		if out.Code != 200 && out.Code != 400 {
			t.Errorf("%d %s", out.Code, out.Body)
		}
	})
}

func BenchmarkImportCAR(b *testing.B) {
	n, err := node.Open(b.Context(), node.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer n.Close()
	s := httptest.NewServer(serve.NewHandler(serve.Config{Store: n, Swarm: n}))
	defer s.Close()
	client, err := kubo.New(s.URL)
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	data := blockstest.Random(b, 1, 64<<20).RawData()
	b.SetBytes(int64(len(data)))
	for i := 0; b.Loop(); i++ {
		data[0], data[1] = byte(i), byte(i>>8) // another root, and mostly the same leaves: verified, not written
		err := client.ImportCAR(b.Context(), nil, func(put ipfs.PutFunc) error {
			_, _, err := importer.File(b.Context(), bytes.NewReader(data), put)
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
