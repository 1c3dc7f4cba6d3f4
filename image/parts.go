package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// manifestsAtOnce is how many manifests are read at once.
const manifestsAtOnce = 8

// Parts lists the files that make up what a CID names: of an image its root,
// its index, and for every platform the manifest, the config and the layers, in
// that order and each once; of anything else the CID alone. It is what has to
// be kept, or sent, for the image to be whole; the image's own links, URLs, are
// none that IPFS follows. It reads the documents from blocks. The error wraps
// [oci.ErrNoCID] for an image of which a part is not in IPFS.
func Parts(ctx context.Context, blocks ipfs.Blocks, root cid.Cid) ([]cid.Cid, error) {
	reader := fileReader{blocks}
	desc, err := rootOf(ctx, reader, root)
	if errors.Is(err, oci.ErrNotRoot) {
		return []cid.Cid{root}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", root, err)
	}
	docs := fetcher{reader}
	tree, err := oci.ReadTree(ctx, docs, desc)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", root, err)
	}
	leaves := tree.Leaves()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(manifestsAtOnce)
	for _, n := range leaves {
		if oci.KindOf(n.Desc.MediaType) == oci.Manifest {
			g.Go(func() error { return n.ReadManifest(gctx, docs) })
		}
	}
	if err := g.Wait(); err != nil {
		return nil, fmt.Errorf("image %s: %w", root, err)
	}
	p := parts{seen: make(map[cid.Cid]bool)}
	p.add(root)
	p.addTree(tree)
	for _, n := range leaves {
		if n.Manifest != nil {
			p.addBlob(n.Manifest.Config)
			for _, l := range n.Manifest.Layers {
				p.addBlob(l)
			}
		}
	}
	if p.err != nil {
		return nil, fmt.Errorf("image %s: %w", root, p.err)
	}
	return p.cids, nil
}

// rootOf is [readRoot], for which what is too large for a root is none.
func rootOf(ctx context.Context, d Reader, c cid.Cid) (ocispec.Descriptor, error) {
	f, err := ipfs.OpenFile(ctx, d, "", c, oci.MaxRootBytes)
	if errors.Is(err, ipfs.ErrTooLarge) || errors.Is(err, ipfs.ErrNotFile) {
		return ocispec.Descriptor{}, oci.ErrNotRoot
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if f.Size() == 0 {
		return ocispec.Descriptor{}, oci.ErrNotRoot
	}
	return readRoot(ctx, d, c)
}

// parts collects CIDs, each once.
type parts struct {
	cids []cid.Cid
	seen map[cid.Cid]bool
	err  error // the first
}

func (p *parts) add(c cid.Cid) {
	if !p.seen[c] {
		p.seen[c] = true
		p.cids = append(p.cids, c)
	}
}

func (p *parts) addBlob(desc ocispec.Descriptor) {
	c, err := oci.CID(desc)
	if err != nil {
		if p.err == nil {
			p.err = err
		}
		return
	}
	p.add(c)
}

// addTree adds indexes, and what is in them.
func (p *parts) addTree(n *oci.Node) {
	p.addBlob(n.Desc)
	for _, c := range n.Children {
		p.addTree(c)
	}
}
