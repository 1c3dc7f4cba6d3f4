package blockstest

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"testing"

	chunker "github.com/ipfs/boxo/chunker"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	"github.com/ipfs/go-cid"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/multiformats/go-multihash"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// RunFiles tests that files as others write them are read through an
// implementation: whole, and by ranges. Each test gets a fixture of its own.
func RunFiles(t *testing.T, newFixture func(t *testing.T) Fixture) {
	t.Helper()
	const kuboChunk, kuboLinks = 256 << 10, 174
	for _, tt := range []struct {
		name    string
		size    int
		builder cid.Builder
		raw     bool // leaves
	}{
		// As nerdctl's push writes a layer: `ipfs add --cid-version=1`.
		{"kubo v1, two levels", (kuboLinks+2)*kuboChunk + 5, cid.V1Builder{Codec: cid.DagProtobuf, MhType: multihash.SHA2_256}, true},
		{"kubo v1, one leaf", 1234, cid.V1Builder{Codec: cid.DagProtobuf, MhType: multihash.SHA2_256}, true},
		// `ipfs add` without options, for many years.
		{"kubo v0, dag-pb leaves", 9*kuboChunk + 1, cid.V0Builder{}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			data := random(uint64(tt.size), tt.size)
			params := helpers.DagBuilderParams{
				Dagserv: dagService{t: t, f: f}, RawLeaves: tt.raw, Maxlinks: kuboLinks, CidBuilder: tt.builder,
			}
			b, err := params.New(chunker.NewSizeSplitter(bytes.NewReader(data), kuboChunk))
			if err != nil {
				t.Fatal(err)
			}
			root, err := balanced.Layout(b)
			if err != nil {
				t.Fatal(err)
			}
			file, err := ipfs.OpenFile(testContext(t), f.Blocks, "", root.Cid(), int64(tt.size))
			if err != nil {
				t.Fatal(err)
			}
			rnd := rand.New(rand.NewPCG(1, 2))
			for i := range 40 {
				off, n := 0, tt.size
				if i > 0 {
					off = rnd.IntN(tt.size)
					n = 1 + rnd.IntN(min(tt.size-off, 3*kuboChunk))
				}
				p := make([]byte, n)
				if got, err := file.ReadAt(testContext(t), p, int64(off)); err != nil && err != io.EOF || !bytes.Equal(p[:got], data[off:off+n]) {
					t.Fatalf("ReadAt(%d bytes, %d) = %d, %v", n, off, got, err)
				}
			}
		})
	}
}

// dagService lets boxo's builder write into a fixture.
type dagService struct {
	ipld.DAGService // of which the builder uses Add alone
	t               testing.TB
	f               Fixture
}

func (d dagService) Add(_ context.Context, n ipld.Node) error {
	d.f.Put(d.t, n)
	return nil
}
