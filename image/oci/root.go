package oci

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multicodec"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// scheme begins the URL by which a descriptor names its blob in IPFS.
const scheme = "ipfs://"

// ParseCID reads an image's name as a person gives it: "ipfs://CID",
// "/ipfs/CID" or the CID alone.
func ParseCID(s string) (cid.Cid, error) {
	text := strings.TrimPrefix(strings.TrimPrefix(s, scheme), "/ipfs/")
	c, err := cid.Decode(text)
	if err != nil {
		return cid.Undef, fmt.Errorf("%.200q is not a CID (%w); an image is named ipfs://CID, as push prints it", s, err)
	}
	if err := checkCID(c); err != nil {
		return cid.Undef, fmt.Errorf("%.200q: %w", s, err)
	}
	return c, nil
}

// checkCID allows the CIDs that can name a UnixFS file.
func checkCID(c cid.Cid) error {
	switch multicodec.Code(c.Type()) {
	case multicodec.Raw, multicodec.DagPb:
		return nil
	default:
		return fmt.Errorf("CID %s is of codec %s, a file's is raw or dag-pb: %w", c, multicodec.Code(c.Type()), ErrNoCID)
	}
}

// CID gives the CID under which the blob of desc is in IPFS: that of its first
// "ipfs://" URL. Other URLs are passed over. The error wraps [ErrNoCID].
func CID(desc ocispec.Descriptor) (cid.Cid, error) {
	for _, u := range desc.URLs {
		text, ok := strings.CutPrefix(u, scheme)
		if !ok {
			continue
		}
		c, err := cid.Decode(text)
		if err != nil {
			return cid.Undef, fmt.Errorf("%s: URL %.200q: %w: %w", desc.Digest, u, err, ErrNoCID)
		}
		if err := checkCID(c); err != nil {
			return cid.Undef, fmt.Errorf("%s: URL %.200q: %w", desc.Digest, u, err)
		}
		return c, nil
	}
	return cid.Undef, fmt.Errorf("%s has no ipfs:// URL: %w", desc.Digest, ErrNoCID)
}

// URL is the form in which [CID] finds c again.
func URL(c cid.Cid) string { return scheme + c.String() }

// ParseRoot reads an image's root: the JSON of the descriptor of its top blob,
// an index or a manifest, with that blob's CID among its URLs (the layout of
// nerdctl's "push ipfs://"). The error wraps [ErrNotRoot], and says what data is
// instead, as far as it can be told; or it wraps [ErrInvalid], [ErrLimit] or
// [ErrNoCID] when data is a root, but a bad one.
func ParseRoot(data []byte) (ocispec.Descriptor, error) {
	if len(data) > MaxRootBytes {
		return ocispec.Descriptor{}, fmt.Errorf("%s, larger than any root descriptor (%d bytes): %w", guess(data), MaxRootBytes, ErrNotRoot)
	}
	var probe struct {
		SchemaVersion json.RawMessage `json:"schemaVersion"`
		Manifests     json.RawMessage `json:"manifests"`
		Layers        json.RawMessage `json:"layers"`
		RootFS        json.RawMessage `json:"rootfs"`
	}
	if err := json.Unmarshal(data, &probe); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("%s: %w", guess(data), ErrNotRoot)
	}
	const instead = "the root is the JSON descriptor of the top index or manifest; push prints its CID"
	switch {
	case probe.Manifests != nil:
		return ocispec.Descriptor{}, fmt.Errorf("it is an image index itself, %s: %w", instead, ErrNotRoot)
	case probe.Layers != nil:
		return ocispec.Descriptor{}, fmt.Errorf("it is an image manifest itself, %s: %w", instead, ErrNotRoot)
	case probe.RootFS != nil:
		return ocispec.Descriptor{}, fmt.Errorf("it is an image config, %s: %w", instead, ErrNotRoot)
	case probe.SchemaVersion != nil:
		return ocispec.Descriptor{}, fmt.Errorf("it is a JSON document with a schema version, %s: %w", instead, ErrNotRoot)
	}
	var desc ocispec.Descriptor
	if err := json.Unmarshal(data, &desc); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("it is JSON, but no descriptor (%w): %w", err, ErrNotRoot)
	}
	if desc.MediaType == "" && desc.Digest == "" {
		return ocispec.Descriptor{}, fmt.Errorf("it is JSON, but no descriptor: it has neither mediaType nor digest: %w", ErrNotRoot)
	}
	if k := KindOf(desc.MediaType); k != Index && k != Manifest {
		return ocispec.Descriptor{}, fmt.Errorf("it is the descriptor of a %.100q, not of an image index or manifest: %w", desc.MediaType, ErrNotRoot)
	}
	if err := Check(desc); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("root descriptor: %w", err)
	}
	if desc.Size == 0 {
		return ocispec.Descriptor{}, fmt.Errorf("root descriptor: the %s has no bytes: %w", desc.MediaType, ErrInvalid)
	}
	if _, err := CID(desc); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("root descriptor: %w", err)
	}
	return desc, nil
}

// guess says what data, which is no JSON or too much of it, looks like.
func guess(data []byte) string {
	const tarMagicOffset = 257
	switch {
	case len(data) == 0:
		return "it is an empty file"
	case bytes.HasPrefix(data, []byte{0x1f, 0x8b}):
		return "it is a gzip stream, perhaps a layer"
	case bytes.HasPrefix(data, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return "it is a zstd stream, perhaps a layer"
	case len(data) > tarMagicOffset+5 && bytes.HasPrefix(data[tarMagicOffset:], []byte("ustar")):
		return "it is a tar archive, perhaps an image archive"
	default:
		return "it is a file of type " + http.DetectContentType(data)
	}
}
