package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// ErrNoLayer says that an image has no such layer.
var ErrNoLayer = errors.New("image has no such layer")

// Finder finds the layers of images, for a snapshotter that is told no more than
// an image's root CID and a layer's digest.
type Finder struct{ reader Reader }

// NewFinder returns a finder that reads documents out of blocks.
func NewFinder(blocks ipfs.Blocks) *Finder { return &Finder{fileReader{blocks}} }

// Find returns the CID of a layer of the image under a root CID, and the digest
// of its table of contents where the image names it. The error is [ErrNoLayer]
// when no manifest of the image has a layer with this digest.
func (f *Finder) Find(ctx context.Context, root, layerDigest string) (cid, tocDigest string, err error) {
	c, err := oci.ParseCID(root)
	if err != nil {
		return "", "", err
	}
	desc, err := readRoot(ctx, f.reader, c)
	if err != nil {
		return "", "", err
	}
	docs := fetcher{f.reader}
	tree, err := oci.ReadTree(ctx, docs, desc)
	if err != nil {
		return "", "", err
	}
	var unread error // a manifest of another platform need not be there
	for _, n := range tree.Leaves() {
		if oci.KindOf(n.Desc.MediaType) != oci.Manifest {
			continue
		}
		if err := n.ReadManifest(ctx, docs); err != nil {
			unread = errors.Join(unread, err)
			continue
		}
		for _, l := range n.Manifest.Layers {
			if l.Digest.String() != layerDigest {
				continue
			}
			layerCID, err := oci.CID(l)
			if err != nil {
				return "", "", err
			}
			return layerCID.String(), l.Annotations[oci.AnnotationTOCDigest], nil
		}
	}
	if unread != nil {
		return "", "", unread
	}
	return "", "", fmt.Errorf("%s, layer %s: %w", root, layerDigest, ErrNoLayer)
}

// fileReader is a [Reader] over blocks.
type fileReader struct{ ipfs.Blocks }

// Cat implements [Reader].
func (r fileReader) Cat(ctx context.Context, path string, offset, length int64) (io.ReadCloser, error) {
	c, err := oci.ParseCID(path)
	if err != nil {
		return nil, err
	}
	f, err := ipfs.OpenFile(ctx, r.Blocks, "", c, oci.MaxDocumentBytes)
	if err != nil {
		return nil, err
	}
	if length < 0 {
		length = f.Size()
	}
	return io.NopCloser(io.NewSectionReader(readerAt{ctx, f}, offset, length)), nil
}

// readerAt reads a file of IPFS on one context.
type readerAt struct {
	ctx  context.Context
	file *ipfs.File
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) { return r.file.ReadAt(r.ctx, p, off) }
