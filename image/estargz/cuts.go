package estargz

import (
	"context"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
)

// Cuts returns where the lazy layer in src may be cut into blocks: at the
// begin and the end of each compressed part, as far as its TOC tells. Where the
// files end that are read first, and where the TOC begins, it must be cut, as
// what lies on the two sides is read at different times. The errors are those of
// [layer.ReadTOC].
func Cuts(ctx context.Context, src layer.Source) ([]importer.Cut, error) {
	toc, err := layer.ReadTOC(ctx, src, "")
	if err != nil {
		return nil, err
	}
	bounds := toc.Bounds()
	cuts := make([]importer.Cut, 0, len(bounds))
	for i, b := range bounds {
		if b > 0 {
			cuts = append(cuts, importer.Cut{Offset: b, Must: b == toc.PrefetchSize || i == len(bounds)-1})
		}
	}
	return cuts, nil
}
