package direct

import (
	"fmt"
	"testing"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// BenchmarkFetch has one block after the other fetched that somebody waits for,
// and, for what the exchange adds to it, by a bare request.
func BenchmarkFetch(b *testing.B) {
	for _, size := range []int{16 << 10, 256 << 10} {
		f := newFile(b, 1, 64, size)
		reader, a := newNode(b), newNode(b)
		reader.Keep = func(blocks.Block) {} // each is fetched many times
		a.hold(f, f.leaves...)
		reader.know(f)
		reader.join(b, a.Host)
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			for i := range b.N {
				w := ipfs.Want{CIDs: []cid.Cid{f.leaves[i%64].Cid()}, Root: f.root.Cid()}
				if err := reader.Fetch(b.Context(), w, func(cid.Cid, []byte) error { return nil }, func(cid.Cid) {}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("%dKiB, request alone", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			for i := range b.N {
				if _, _, err := reader.client.get(b.Context(), a.Host.ID(), f.leaves[i%64].Cid()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
