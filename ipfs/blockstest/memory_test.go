package blockstest_test

import (
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
)

func TestMemory(t *testing.T) {
	newFixture := func(*testing.T) blockstest.Fixture {
		m := blockstest.NewMemory()
		put := func(t testing.TB, c cid.Cid, data []byte) {
			b, err := blocks.NewBlockWithCid(data, c)
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Put(t.Context(), b); err != nil {
				t.Fatal(err)
			}
		}
		return blockstest.Fixture{
			Blocks: m,
			Put: func(t testing.TB, bs ...blocks.Block) {
				for _, b := range bs {
					put(t, b.Cid(), b.RawData())
				}
			},
			Plant: put,
		}
	}
	blockstest.Run(t, newFixture)
	blockstest.RunFiles(t, newFixture)
}
