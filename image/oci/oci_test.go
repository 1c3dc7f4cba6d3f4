package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	rawCID = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
	pbCID  = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"
)

// blobs is an image in memory.
type blobs map[digest.Digest][]byte

func (b blobs) fetcher() remotes.Fetcher {
	return remotes.FetcherFunc(func(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
		data, ok := b[desc.Digest]
		if !ok {
			return nil, os.ErrNotExist
		}
		return io.NopCloser(bytes.NewReader(data)), nil
	})
}

// add stores v as JSON, or as it is if it is bytes.
func (b blobs) add(t testing.TB, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	data, ok := v.([]byte)
	if !ok {
		var err error
		if data, err = json.Marshal(v); err != nil {
			t.Fatal(err)
		}
	}
	d := digest.FromBytes(data)
	b[d] = data
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

// image stores a manifest for a platform with one layer.
func (b blobs) image(t testing.TB, architecture string) ocispec.Descriptor {
	t.Helper()
	layer := b.add(t, ocispec.MediaTypeImageLayer, []byte("layer of "+architecture))
	config := b.add(t, ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: architecture},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
	})
	return b.add(t, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{layer},
	})
}

func (b blobs) index(t testing.TB, entries ...ocispec.Descriptor) ocispec.Descriptor {
	t.Helper()
	return b.add(t, ocispec.MediaTypeImageIndex, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: entries})
}

func on(d ocispec.Descriptor, platform ...string) ocispec.Descriptor {
	d.Platform = &ocispec.Platform{OS: platform[0], Architecture: platform[1]}
	if len(platform) > 2 {
		d.Platform.Variant = platform[2]
	}
	return d
}

func TestReadVerifies(t *testing.T) {
	ctx := context.Background()
	b := blobs{}
	desc := b.add(t, ocispec.MediaTypeImageIndex, ocispec.Index{})
	if _, err := ReadIndex(ctx, b.fetcher(), desc); err != nil {
		t.Fatal(err)
	}
	more, less, other := desc, desc, desc
	more.Size++
	less.Size--
	other.Digest = digest.FromString("other")
	b[other.Digest] = b[desc.Digest]
	for name, d := range map[string]ocispec.Descriptor{"too large a size": more, "too small a size": less, "wrong digest": other} {
		if _, err := ReadIndex(ctx, b.fetcher(), d); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ReadIndex(ctx, blobs{}.fetcher(), desc); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

// endless gives a blob that never ends.
func endless() remotes.Fetcher {
	return remotes.FetcherFunc(func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
		return io.NopCloser(zeros{}), nil
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestReadIsBounded(t *testing.T) {
	ctx := context.Background()
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(""), Size: 10}
	if _, err := Read(ctx, endless(), desc); !errors.Is(err, ErrInvalid) {
		t.Errorf("endless blob: %v", err)
	}
	desc.Size = MaxDocumentBytes + 1
	if _, err := Read(ctx, endless(), desc); !errors.Is(err, ErrLimit) {
		t.Errorf("huge manifest: %v", err)
	}
	desc.MediaType = "application/x"
	if _, err := Read(ctx, endless(), desc); !errors.Is(err, ErrLimit) {
		t.Errorf("huge blob of another kind: %v", err)
	}
}

func TestReadRefuses(t *testing.T) {
	ctx := context.Background()
	b := blobs{}
	good := b.add(t, ocispec.MediaTypeImageLayer, []byte("x"))
	many := make([]ocispec.Descriptor, MaxDocuments+1)
	for i := range many {
		many[i] = good
	}
	index, manifest := ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest
	for _, tt := range []struct {
		name string
		desc ocispec.Descriptor
		want error
	}{
		{"index that is a manifest", b.add(t, index, []byte(`{"config":{},"layers":[]}`)), ErrInvalid},
		{"manifest that is an index", b.add(t, manifest, []byte(`{"manifests":[]}`)), ErrInvalid},
		{"other media type inside", b.add(t, manifest, []byte(`{"mediaType":"`+index+`"}`)), ErrInvalid},
		{"schema 1", b.add(t, manifest, []byte(`{"fsLayers":[]}`)), ErrInvalid},
		{"no JSON", b.add(t, index, []byte(`{`)), ErrInvalid},
		{"fields of wrong types", b.add(t, index, []byte(`{"manifests":{}}`)), ErrInvalid},
		{"manifest without config", b.add(t, manifest, []byte(`{"layers":[]}`)), ErrInvalid},
		{"too many entries", b.index(t, many...), ErrLimit},
		{"too many layers", b.add(t, manifest, ocispec.Manifest{Config: good, Layers: many[:MaxLayers+1]}), ErrLimit},
		{"entry with a bad digest", b.index(t, ocispec.Descriptor{MediaType: manifest, Digest: "sha256:../../x"}), ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var err error
			if tt.desc.MediaType == index {
				_, err = ReadIndex(ctx, b.fetcher(), tt.desc)
			} else {
				_, err = ReadManifest(ctx, b.fetcher(), tt.desc)
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestReadConfigRefuses(t *testing.T) {
	ctx := context.Background()
	b := blobs{}
	layer := b.add(t, ocispec.MediaTypeImageLayer, []byte("x"))
	for name, config := range map[string]string{
		"fewer diff IDs": `{"rootfs":{"type":"layers","diff_ids":[]}}`,
		"bad diff ID":    `{"rootfs":{"type":"layers","diff_ids":["sha256:x"]}}`,
		"no JSON":        `x`,
	} {
		m := ocispec.Manifest{Config: b.add(t, ocispec.MediaTypeImageConfig, []byte(config)), Layers: []ocispec.Descriptor{layer}}
		if _, err := ReadConfig(ctx, b.fetcher(), m); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadTreeIsBounded(t *testing.T) {
	ctx := context.Background()
	b := blobs{}
	deep := b.image(t, "amd64")
	for range MaxIndexDepth {
		deep = b.index(t, deep)
	}
	if _, err := ReadTree(ctx, b.fetcher(), deep); err != nil {
		t.Errorf("%d indexes in each other: %v", MaxIndexDepth, err)
	}
	if _, err := ReadTree(ctx, b.fetcher(), b.index(t, deep)); !errors.Is(err, ErrLimit) {
		t.Errorf("%d indexes in each other: %v", MaxIndexDepth+1, err)
	}
	// Few blobs can make many places: 40 x 40 = 1,600.
	wide := b.image(t, "arm64")
	for range 2 {
		entries := make([]ocispec.Descriptor, 40)
		for i := range entries {
			entries[i] = wide
		}
		wide = b.index(t, entries...)
	}
	if _, err := ReadTree(ctx, b.fetcher(), wide); !errors.Is(err, ErrLimit) {
		t.Errorf("1,600 entries: %v", err)
	}
}

// TestReadTreeCycle serves an index under a digest that it itself contains,
// which only a fetcher that lies can do.
func TestReadTreeCycle(t *testing.T) {
	self := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromString("self"), Size: 0}
	for range 3 { // until the size is that of the document with the size in it
		data, err := json.Marshal(ocispec.Index{Manifests: []ocispec.Descriptor{self}})
		if err != nil {
			t.Fatal(err)
		}
		self.Size = int64(len(data))
		_, err = ReadTree(context.Background(), blobs{self.Digest: data}.fetcher(), self)
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("ReadTree = %v", err)
		}
	}
}

func TestPick(t *testing.T) {
	ctx := context.Background()
	b := blobs{}
	amd, arm6, arm7 := b.image(t, "amd64"), b.image(t, "arm"), b.image(t, "arm64")
	attestation := b.add(t, ocispec.MediaTypeImageManifest, []byte("not read"))
	attestation = on(attestation, "unknown", "unknown")
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	absent := on(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("absent"), Size: 3}, "linux", "s390x")
	nested := b.index(t, on(arm7, "linux", "arm", "v7"))
	root := b.index(t, on(amd, "linux", "amd64"), on(arm6, "linux", "arm", "v6"), attestation, absent, nested)

	for _, tt := range []struct {
		name   string
		root   ocispec.Descriptor
		choice Choice
		want   []digest.Digest // nil: ErrNoPlatform
	}{
		{"one", root, Choice{Platforms: []string{"linux/amd64"}}, []digest.Digest{amd.Digest}},
		{"one that suits less than fully", root, Choice{Platforms: []string{"linux/arm64"}}, []digest.Digest{arm7.Digest}},
		{"the best of several, nested", root, Choice{Platforms: []string{"linux/arm/v7"}}, []digest.Digest{arm7.Digest}},
		{"two", root, Choice{Platforms: []string{"linux/amd64", "linux/arm/v6"}}, []digest.Digest{amd.Digest, arm6.Digest}},
		{"all", root, Choice{All: true}, []digest.Digest{amd.Digest, arm6.Digest, attestation.Digest, absent.Digest, arm7.Digest}},
		{"none", root, Choice{Platforms: []string{"windows/amd64"}}, nil},
		{"one of two", root, Choice{Platforms: []string{"linux/amd64", "windows/amd64"}}, nil},
		{"platform from the config", b.index(t, amd, arm6), Choice{Platforms: []string{"linux/arm"}}, []digest.Digest{arm6.Digest}},
		{"no index", arm7, Choice{}, []digest.Digest{arm7.Digest}},
		{"no index, right platform", arm7, Choice{Platforms: []string{"linux/arm64"}}, []digest.Digest{arm7.Digest}},
		{"no index, wrong platform", arm7, Choice{Platforms: []string{"linux/amd64"}}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tree, err := ReadTree(ctx, b.fetcher(), tt.root)
			if err != nil {
				t.Fatal(err)
			}
			picked, err := tt.choice.Pick(ctx, b.fetcher(), tree)
			if tt.want == nil {
				if !errors.Is(err, ErrNoPlatform) {
					t.Errorf("Pick = %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []digest.Digest
			for _, n := range tree.Leaves() {
				if picked[n] {
					got = append(got, n.Desc.Digest)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("picked %v, want %v", got, tt.want)
			}
		})
	}
}

func TestKindOf(t *testing.T) {
	for mediaType, want := range map[string]Kind{
		ocispec.MediaTypeImageIndex:                    Index,
		images.MediaTypeDockerSchema2ManifestList:      Index,
		images.MediaTypeDockerSchema2Manifest:          Manifest,
		images.MediaTypeDockerSchema2Config:            Config,
		images.MediaTypeDockerSchema2LayerForeignGzip:  Layer,
		ocispec.MediaTypeImageLayerZstd:                Layer,
		ocispec.MediaTypeImageLayerGzip + "+encrypted": Layer,
		"application/vnd.in-toto+json":                 Other,
		"":                                             Other,
	} {
		if got := KindOf(mediaType); got != want {
			t.Errorf("KindOf(%q) = %d, want %d", mediaType, got, want)
		}
	}
}
