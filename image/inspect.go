package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/ipfs-stargz/ipfs-stargz/image/estargz"
	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// Report is what an image in IPFS consists of.
type Report struct {
	CID       string     `json:"cid"`       // of the root descriptor
	Target    Blob       `json:"target"`    // the index or manifest it describes
	Manifests []Manifest `json:"manifests"` // in the order of the index
}

// Blob is a document or layer of an image.
type Blob struct {
	CID       string        `json:"cid,omitempty"`
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"` // bytes
	MediaType string        `json:"mediaType"`
}

// Manifest is an image for one platform, or something else that an index lists.
type Manifest struct {
	Blob
	Kind     string  `json:"kind"` // "image", "attestation", "artifact" or "other"
	Platform string  `json:"platform,omitempty"`
	Config   *Blob   `json:"config,omitempty"`
	Layers   []Layer `json:"layers,omitempty"`
}

// Layer is a layer, and whether it can be mounted before it is there.
type Layer struct {
	Blob
	Format    string        `json:"format,omitempty"` // "estargz", "zstd:chunked", or as the media type has it
	Lazy      bool          `json:"lazy"`
	Why       string        `json:"why,omitempty"` // it is not lazy
	TOCDigest digest.Digest `json:"tocDigest,omitempty"`
	Blocks    int           `json:"blocks,omitempty"` // that hold its bytes
}

// inspectedAtOnce is how many layers' tables of contents are held in memory.
const inspectedAtOnce = 4

// Inspect tells what the image under a root CID, "ipfs://CID" or the CID alone,
// consists of, for all its platforms. It reads the documents and, of the
// layers, what says whether they are lazy; a layer that cannot be had is
// reported as not lazy, and no error.
func Inspect(ctx context.Context, d Reader, ref string) (Report, error) {
	c, err := oci.ParseCID(ref)
	if err != nil {
		return Report{}, fmt.Errorf("inspect: %w", err)
	}
	r, err := inspect(ctx, d, c)
	if err != nil {
		return Report{}, fmt.Errorf("inspect %s: %w", ref, err)
	}
	return r, nil
}

func inspect(ctx context.Context, d Reader, c cid.Cid) (Report, error) {
	root, err := readRoot(ctx, d, c)
	if err != nil {
		return Report{}, err
	}
	tree, err := oci.ReadTree(ctx, fetcher{d}, root)
	if err != nil {
		return Report{}, err
	}
	report := Report{CID: c.String(), Target: blobOf(root)}
	for _, n := range tree.Leaves() {
		m, err := inspectManifest(ctx, d, n)
		if err != nil {
			return Report{}, err
		}
		report.Manifests = append(report.Manifests, m)
	}
	return report, nil
}

func blobOf(desc ocispec.Descriptor) Blob {
	b := Blob{Digest: desc.Digest, Size: desc.Size, MediaType: desc.MediaType}
	if c, err := oci.CID(desc); err == nil {
		b.CID = c.String()
	}
	return b
}

func inspectManifest(ctx context.Context, d Reader, n *oci.Node) (Manifest, error) {
	m := Manifest{Blob: blobOf(n.Desc), Kind: "other"}
	if oci.KindOf(n.Desc.MediaType) != oci.Manifest {
		return m, nil
	}
	if err := n.ReadManifest(ctx, fetcher{d}); err != nil {
		return Manifest{}, err
	}
	switch {
	case oci.IsAttestation(n.Desc):
		m.Kind = "attestation"
	case oci.IsImage(n.Manifest):
		m.Kind = "image"
	default:
		m.Kind = "artifact"
	}
	platform, err := n.PlatformOf(ctx, fetcher{d})
	if err != nil {
		return Manifest{}, err
	}
	if platform != nil {
		m.Platform = platforms.FormatAll(*platform)
	}
	config := blobOf(n.Manifest.Config)
	m.Config = &config
	m.Layers = make([]Layer, len(n.Manifest.Layers))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(inspectedAtOnce)
	for i, desc := range n.Manifest.Layers {
		g.Go(func() error {
			m.Layers[i] = inspectLayer(gctx, d, desc)
			return gctx.Err() // what it says of the layer then is not so
		})
	}
	return m, g.Wait()
}

func inspectLayer(ctx context.Context, d Reader, desc ocispec.Descriptor) Layer {
	l := Layer{Blob: blobOf(desc), Format: formatOf(ctx, desc)}
	why := func() error {
		if oci.KindOf(desc.MediaType) != oci.Layer {
			return errors.New("it is no file system layer")
		}
		c, err := oci.CID(desc)
		if err != nil {
			return err
		}
		f, err := ipfs.OpenFile(ctx, d, "", c, desc.Size)
		if err != nil {
			return err
		}
		l.Blocks = f.NumLeaves()
		if f.Size() != desc.Size {
			return fmt.Errorf("its file in IPFS has %d bytes, its descriptor says %d", f.Size(), desc.Size)
		}
		format, toc, err := estargz.IsStargz(ctx, f)
		if err != nil {
			return err
		}
		l.Format, l.TOCDigest = format.String(), toc
		switch named := desc.Annotations[oci.AnnotationTOCDigest]; named {
		case toc.String():
			return nil
		case "":
			return fmt.Errorf("the manifest does not name its TOC digest (annotation %s), so its files cannot be verified", oci.AnnotationTOCDigest)
		default:
			return fmt.Errorf("the manifest names the TOC digest %.100q", named)
		}
	}()
	l.Lazy = why == nil
	if why != nil {
		l.Why = why.Error()
	}
	return l
}

// formatOf is what the media type says of a layer's packing.
func formatOf(ctx context.Context, desc ocispec.Descriptor) string {
	compression, err := images.DiffCompression(ctx, desc.MediaType)
	switch {
	case err != nil:
		return ""
	case compression == "":
		return "tar"
	default:
		return compression
	}
}
