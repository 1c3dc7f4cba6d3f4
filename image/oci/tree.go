package oci

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Node is one place in the tree of an image's documents. Exactly one of Index,
// Manifest and neither is set: neither for a manifest that was not read and
// for a blob of another kind.
type Node struct {
	Desc     ocispec.Descriptor
	Index    *ocispec.Index
	Manifest *ocispec.Manifest
	Children []*Node // of an index, in its order
}

// ReadTree reads the indexes below root (not the manifests: those of other
// platforms need not be there) and returns their tree. The tree is bounded by
// [MaxDocuments] and [MaxIndexDepth]; an index cannot contain itself, as
// that would take a collision of its digest, and is refused all the same.
func ReadTree(ctx context.Context, f remotes.Fetcher, root ocispec.Descriptor) (*Node, error) {
	r := treeReader{fetcher: f}
	return r.read(ctx, root, nil)
}

type treeReader struct {
	fetcher   remotes.Fetcher
	documents int
}

// read makes the node of desc; above are the indexes it is in, topmost first.
func (r *treeReader) read(ctx context.Context, desc ocispec.Descriptor, above []ocispec.Descriptor) (*Node, error) {
	if r.documents++; r.documents > MaxDocuments {
		return nil, fmt.Errorf("the image has more than %d indexes and manifests: %w", MaxDocuments, ErrLimit)
	}
	n := &Node{Desc: desc}
	if KindOf(desc.MediaType) != Index {
		return n, nil
	}
	if len(above) == MaxIndexDepth {
		return nil, fmt.Errorf("index %s is nested more than %d deep: %w", desc.Digest, MaxIndexDepth, ErrLimit)
	}
	for _, a := range above {
		if a.Digest == desc.Digest {
			return nil, fmt.Errorf("index %s contains itself: %w", desc.Digest, ErrInvalid)
		}
	}
	index, err := ReadIndex(ctx, r.fetcher, desc)
	if err != nil {
		return nil, err
	}
	n.Index = &index
	for _, d := range index.Manifests {
		child, err := r.read(ctx, d, append(above[:len(above):len(above)], desc))
		if err != nil {
			return nil, err
		}
		n.Children = append(n.Children, child)
	}
	return n, nil
}

// Leaves lists the nodes of the tree that are not indexes, from left to right.
func (n *Node) Leaves() []*Node {
	if n.Index == nil {
		return []*Node{n}
	}
	var all []*Node
	for _, c := range n.Children {
		all = append(all, c.Leaves()...)
	}
	return all
}

// ReadManifest reads the manifest of a node of that kind into it.
func (n *Node) ReadManifest(ctx context.Context, f remotes.Fetcher) error {
	m, err := ReadManifest(ctx, f, n.Desc)
	if err != nil {
		return err
	}
	n.Manifest = &m
	return nil
}

// IsImage tells whether m describes an image to run: its config is one. An
// artifact, such as a signature or a chart, is none.
func IsImage(m *ocispec.Manifest) bool { return KindOf(m.Config.MediaType) == Config }

// IsAttestation tells whether an index's entry is a statement about another
// entry (BuildKit's provenance and SBOM), not an image.
func IsAttestation(desc ocispec.Descriptor) bool {
	return desc.Annotations["vnd.docker.reference.type"] == "attestation-manifest"
}

// PlatformOf tells for which platform the manifest of node is: as its
// descriptor says, else as its config does, for which the manifest and the
// config are read. It is nil for what is no image.
func (n *Node) PlatformOf(ctx context.Context, f remotes.Fetcher) (*ocispec.Platform, error) {
	if KindOf(n.Desc.MediaType) != Manifest || IsAttestation(n.Desc) {
		return nil, nil
	}
	p := n.Desc.Platform
	if p == nil {
		if n.Manifest == nil {
			if err := n.ReadManifest(ctx, f); err != nil {
				return nil, err
			}
		}
		if !IsImage(n.Manifest) {
			return nil, nil
		}
		config, err := ReadConfig(ctx, f, *n.Manifest)
		if err != nil {
			return nil, err
		}
		p = &config.Platform
	}
	normal := platforms.Normalize(*p)
	return &normal, nil
}
