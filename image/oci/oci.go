// Package oci reads the JSON documents of an image that nobody vouches for yet:
// its root descriptor, its indexes, manifests and configs. Each is read within
// a limit, checked against the digest and size by which it was named, and
// validated, before anything else is done with it.
//
// It is the floor of package image: push walks the source image with it, pull
// and inspect what a stranger put into IPFS. The documents are those of the
// OCI image specification v1.1 and Docker's schema 2, which has the same fields:
// https://github.com/opencontainers/image-spec.
package oci

import (
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Limits on what is read of an image. A document over a limit is refused with
// [ErrLimit] before memory is spent on it.
const (
	MaxRootBytes     = 64 << 10 // the root descriptor
	MaxDocumentBytes = 4 << 20  // an index, manifest or config: what registries accept
	MaxDocuments     = 1000     // indexes and manifests of one image
	MaxLayers        = 1000     // of one manifest
	MaxIndexDepth    = 4        // indexes in indexes
)

// Annotations of a layer's descriptor. Those whose key begins with
// "containerd.io/snapshot/" reach the snapshotter as labels on every path by
// which containerd unpacks.
const (
	// AnnotationCID is the CID of the layer's blob as a UnixFS file, in its
	// canonical text form.
	AnnotationCID = "containerd.io/snapshot/ipfs-stargz.cid"
	// AnnotationTOCDigest is the digest of the JSON table of contents of an
	// eStargz or zstd:chunked layer (stargz-snapshotter, docs/estargz.md).
	AnnotationTOCDigest = "containerd.io/snapshot/stargz/toc.digest"
	// AnnotationUncompressedSize is the size of the layer's tar, in bytes,
	// in decimal.
	AnnotationUncompressedSize = "io.containers.estargz.uncompressed-size"
)

// What can be wrong with an image. Errors of this package wrap one of these,
// or are the reader's own.
var (
	// ErrNotRoot: the bytes are no root descriptor of an image.
	ErrNotRoot = errors.New("not the root of an image")
	// ErrInvalid: a document contradicts itself, its descriptor or the
	// specification.
	ErrInvalid = errors.New("invalid image")
	// ErrLimit: the image goes over a limit of this package.
	ErrLimit = errors.New("image over a limit")
	// ErrNoPlatform: the image has nothing for a platform that was asked for.
	ErrNoPlatform = errors.New("no image for the platform")
	// ErrNoCID: a descriptor has no usable "ipfs://" URL.
	ErrNoCID = errors.New("no CID is recorded")
)

// Kind is what a descriptor's media type says it describes.
type Kind uint8

// The kinds of blobs.
const (
	Other Kind = iota // anything else, such as an attestation
	Index
	Manifest
	Config
	Layer
)

// KindOf sorts a media type, of OCI's or of Docker's.
func KindOf(mediaType string) Kind {
	switch {
	case images.IsIndexType(mediaType):
		return Index
	case images.IsManifestType(mediaType):
		return Manifest
	case images.IsConfigType(mediaType):
		return Config
	case images.IsLayerType(mediaType):
		return Layer
	default:
		return Other
	}
}

// Check validates the fields by which desc names its blob: digest (SHA-256
// or SHA-512, well formed), size (not negative; an index, manifest or config
// within [MaxDocumentBytes]) and the presence of a media type.
func Check(desc ocispec.Descriptor) error {
	if desc.MediaType == "" {
		return fmt.Errorf("descriptor %.100q has no media type: %w", desc.Digest, ErrInvalid)
	}
	// Validate comes first: on a digest without ":" Algorithm panics.
	if err := desc.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %.200q: %w: %w", desc.Digest, err, ErrInvalid)
	}
	if a := desc.Digest.Algorithm(); a != digest.SHA256 && a != digest.SHA512 {
		return fmt.Errorf("digest %s is neither SHA-256 nor SHA-512: %w", desc.Digest, ErrInvalid)
	}
	if desc.Size < 0 {
		return fmt.Errorf("%s has a negative size (%d): %w", desc.Digest, desc.Size, ErrInvalid)
	}
	switch KindOf(desc.MediaType) {
	case Index, Manifest, Config:
		if desc.Size > MaxDocumentBytes {
			return fmt.Errorf("%s %s says it has %d bytes, at most %d are read: %w",
				desc.MediaType, desc.Digest, desc.Size, MaxDocumentBytes, ErrLimit)
		}
	}
	return nil
}
