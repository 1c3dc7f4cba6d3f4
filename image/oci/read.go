package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/remotes"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Read gets the document that desc names from f, whole. It checks desc first,
// reads no more than its size, and verifies size and digest.
func Read(ctx context.Context, f remotes.Fetcher, desc ocispec.Descriptor) ([]byte, error) {
	if err := Check(desc); err != nil {
		return nil, err
	}
	if desc.Size > MaxDocumentBytes { // of a kind that Check does not know
		return nil, fmt.Errorf("%s %s has %d bytes, at most %d are read: %w",
			desc.MediaType, desc.Digest, desc.Size, MaxDocumentBytes, ErrLimit)
	}
	rc, err := f.Fetch(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	data, err := io.ReadAll(io.LimitReader(rc, desc.Size+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", desc.Digest, err)
	}
	if int64(len(data)) != desc.Size {
		return nil, fmt.Errorf("%s %s: its descriptor says %d bytes, it has %s: %w",
			desc.MediaType, desc.Digest, desc.Size, count(len(data), desc.Size), ErrInvalid)
	}
	if got := desc.Digest.Algorithm().FromBytes(data); got != desc.Digest {
		return nil, fmt.Errorf("%s %s: its bytes have the digest %s: %w", desc.MediaType, desc.Digest, got, ErrInvalid)
	}
	return data, nil
}

// count words how many bytes there were, when reading stopped one past want.
func count(got int, want int64) string {
	if int64(got) > want {
		return "more"
	}
	return fmt.Sprint(got)
}

// contents are the fields by which documents of one kind betray that they are
// of another: what is a manifest to one reader must not be an index to the next
// (CVE-2021-41190).
type contents struct {
	MediaType string          `json:"mediaType"`
	Config    json.RawMessage `json:"config"`
	Layers    json.RawMessage `json:"layers"`
	Manifests json.RawMessage `json:"manifests"`
	FSLayers  json.RawMessage `json:"fsLayers"`
}

// checkContents refuses a document that is not what its descriptor says.
func checkContents(data []byte, desc ocispec.Descriptor) error {
	var c contents
	if err := json.Unmarshal(data, &c); err != nil {
		return fmt.Errorf("%s %s: %w: %w", desc.MediaType, desc.Digest, err, ErrInvalid)
	}
	if c.FSLayers != nil {
		return fmt.Errorf("%s is a Docker schema 1 manifest, which is not supported: %w", desc.Digest, ErrInvalid)
	}
	if c.MediaType != "" && c.MediaType != desc.MediaType {
		return fmt.Errorf("%s is named as %s, but says it is %.100q: %w", desc.Digest, desc.MediaType, c.MediaType, ErrInvalid)
	}
	foreign := c.Manifests != nil
	if KindOf(desc.MediaType) == Index {
		foreign = c.Config != nil || c.Layers != nil
	}
	if foreign {
		return fmt.Errorf("%s is named as %s, but has the fields of another document: %w", desc.Digest, desc.MediaType, ErrInvalid)
	}
	return nil
}

// ReadIndex reads and validates the index that desc names.
func ReadIndex(ctx context.Context, f remotes.Fetcher, desc ocispec.Descriptor) (ocispec.Index, error) {
	data, err := Read(ctx, f, desc)
	if err != nil {
		return ocispec.Index{}, err
	}
	if err := checkContents(data, desc); err != nil {
		return ocispec.Index{}, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return ocispec.Index{}, fmt.Errorf("index %s: %w: %w", desc.Digest, err, ErrInvalid)
	}
	if n := len(index.Manifests); n > MaxDocuments {
		return ocispec.Index{}, fmt.Errorf("index %s has %d entries, at most %d are read: %w", desc.Digest, n, MaxDocuments, ErrLimit)
	}
	for _, m := range index.Manifests {
		if err := Check(m); err != nil {
			return ocispec.Index{}, fmt.Errorf("index %s: %w", desc.Digest, err)
		}
	}
	return index, nil
}

// ReadManifest reads and validates the manifest that desc names.
func ReadManifest(ctx context.Context, f remotes.Fetcher, desc ocispec.Descriptor) (ocispec.Manifest, error) {
	data, err := Read(ctx, f, desc)
	if err != nil {
		return ocispec.Manifest{}, err
	}
	if err := checkContents(data, desc); err != nil {
		return ocispec.Manifest{}, err
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(data, &manifest); err != nil {
		return ocispec.Manifest{}, fmt.Errorf("manifest %s: %w: %w", desc.Digest, err, ErrInvalid)
	}
	if n := len(manifest.Layers); n > MaxLayers {
		return ocispec.Manifest{}, fmt.Errorf("manifest %s has %d layers, at most %d are read: %w", desc.Digest, n, MaxLayers, ErrLimit)
	}
	for _, d := range append([]ocispec.Descriptor{manifest.Config}, manifest.Layers...) {
		if err := Check(d); err != nil {
			return ocispec.Manifest{}, fmt.Errorf("manifest %s: %w", desc.Digest, err)
		}
	}
	return manifest, nil
}

// ImageConfig is an image's config twice: the fields that are needed here, and
// the whole document, so that what is not known here is kept when it is
// written again.
type ImageConfig struct {
	Raw      []byte
	Platform ocispec.Platform
	RootFS   ocispec.RootFS
}

// ReadConfig reads the image config of manifest, and checks that it has one
// diff ID for each layer.
func ReadConfig(ctx context.Context, f remotes.Fetcher, manifest ocispec.Manifest) (ImageConfig, error) {
	desc := manifest.Config
	data, err := Read(ctx, f, desc)
	if err != nil {
		return ImageConfig{}, err
	}
	var image struct {
		ocispec.Platform
		RootFS ocispec.RootFS `json:"rootfs"`
	}
	if err := json.Unmarshal(data, &image); err != nil {
		return ImageConfig{}, fmt.Errorf("image config %s: %w: %w", desc.Digest, err, ErrInvalid)
	}
	if n, m := len(image.RootFS.DiffIDs), len(manifest.Layers); n != m {
		return ImageConfig{}, fmt.Errorf("image config %s has %d diff IDs for %d layers: %w", desc.Digest, n, m, ErrInvalid)
	}
	for _, id := range image.RootFS.DiffIDs {
		if err := id.Validate(); err != nil {
			return ImageConfig{}, fmt.Errorf("image config %s: diff ID %.200q: %w: %w", desc.Digest, id, err, ErrInvalid)
		}
	}
	return ImageConfig{Raw: data, Platform: image.Platform, RootFS: image.RootFS}, nil
}
