package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ipfs-stargz/ipfs-stargz/image/estargz"
	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
)

func TestRun(t *testing.T) {
	s := newStore()
	a := s.gzipLayer(t, ocispec.MediaTypeImageLayerGzip, "a")
	a.Annotations = map[string]string{"mine": "kept"}
	tarData := tarball(t, "b", "plain tar")
	b := layerOf{s.add(t, images.MediaTypeDockerSchema2Layer, tarData), digest.FromBytes(tarData)}
	lazy, toc := s.lazyLayer(t, "lazy")
	manifest := s.manifest(t, "amd64", a, b, lazy, a)
	w := newWorld(t, s, manifest)
	result := w.run(t)

	if got := [3]int{result.Converted, result.Kept, result.Plain}; got != [3]int{2, 1, 0} {
		t.Errorf("converted, kept, plain = %v", got)
	}
	m := read[ocispec.Manifest](t, w, result.Root)
	config := read[map[string]json.RawMessage](t, w, m.Config)
	if string(config["history"]) != `["kept"]` || string(config["unknown to us"]) != `{"kept":1}` {
		t.Errorf("config lost fields: %s", config)
	}
	var image struct{ RootFS ocispec.RootFS }
	if err := json.Unmarshal(config["rootfs"], &image.RootFS); err != nil {
		t.Fatal(err)
	}
	for i, l := range m.Layers {
		if l.MediaType != ocispec.MediaTypeImageLayerGzip {
			t.Errorf("layer %d: media type %s", i, l.MediaType)
		}
		if want := blobDiffID(t, w, l); image.RootFS.DiffIDs[i] != want {
			t.Errorf("layer %d: diff ID %s, want %s", i, image.RootFS.DiffIDs[i], want)
		}
		c, err := oci.CID(l)
		if err != nil {
			t.Fatal(err)
		}
		if got := l.Annotations[oci.AnnotationCID]; got != c.String() {
			t.Errorf("layer %d: annotated with %s, its URL has %s", i, got, c)
		}
		if n := w.cuts[l.Digest]; n < 3 { // landmark, file, TOC
			t.Errorf("layer %d was to be cut at %d places", i, n)
		}
		if l.Annotations[oci.AnnotationTOCDigest] == "" {
			t.Errorf("layer %d has no TOC digest", i)
		}
	}
	if m.Layers[0].Annotations["mine"] != "kept" || m.Layers[3].Digest != m.Layers[0].Digest {
		t.Errorf("layers 0 and 3: %+v, %+v", m.Layers[0], m.Layers[3])
	}
	if m.Layers[0].Annotations[oci.AnnotationUncompressedSize] == "" {
		t.Error("a converted layer does not tell its uncompressed size")
	}
	if got := m.Layers[2]; got.Digest != lazy.Digest || got.Annotations[oci.AnnotationTOCDigest] != toc.String() {
		t.Errorf("lazy layer became %+v", got)
	}
	for d, n := range w.stored {
		if n != 1 {
			t.Errorf("blob %s was stored %d times", d, n)
		}
	}
	if w.cuts[m.Config.Digest]+w.cuts[result.Root.Digest] != 0 {
		t.Error("documents were to be cut")
	}
	if want := 5; len(result.Blobs) != want { // 3 distinct layers, config, manifest
		t.Errorf("%d blobs, want %d", len(result.Blobs), want)
	}
	if left, err := os.ReadDir(w.Dir); err != nil || len(left) != 4 { // 2 layers, config, manifest
		t.Errorf("left in the directory: %v, %v", left, err)
	}
	if last := result.Blobs[len(result.Blobs)-1]; last.Digest != result.Root.Digest {
		t.Errorf("last blob is %s, not the root", last.Digest)
	}
}

// dockerManifest is s.manifest in Docker's media types.
func (s *store) dockerManifest(t testing.TB, layer layerOf) ocispec.Descriptor {
	t.Helper()
	config := s.add(t, images.MediaTypeDockerSchema2Config, map[string]any{
		"os": "linux", "architecture": "amd64",
		"rootfs": ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.diffID}},
	})
	m := ocispec.Manifest{MediaType: images.MediaTypeDockerSchema2Manifest, Config: config, Layers: []ocispec.Descriptor{layer.Descriptor}}
	return s.add(t, images.MediaTypeDockerSchema2Manifest, m)
}

func TestDockerBecomesOCI(t *testing.T) {
	s := newStore()
	layer := s.gzipLayer(t, images.MediaTypeDockerSchema2LayerGzip, "a")
	entry := s.dockerManifest(t, layer)
	entry.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	list := s.add(t, images.MediaTypeDockerSchema2ManifestList, ocispec.Index{
		MediaType: images.MediaTypeDockerSchema2ManifestList, Manifests: []ocispec.Descriptor{entry},
	})
	w := newWorld(t, s, list)
	w.Choice = oci.Choice{All: true}
	result := w.run(t)
	var types []string
	for _, b := range result.Blobs {
		types = append(types, b.MediaType)
	}
	slices.Sort(types)
	want := []string{ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageManifest}
	slices.Sort(want)
	if !slices.Equal(types, want) {
		t.Errorf("media types %v, want %v", types, want)
	}
	index := read[ocispec.Index](t, w, result.Root)
	m := read[ocispec.Manifest](t, w, index.Manifests[0])
	if index.MediaType != ocispec.MediaTypeImageIndex || m.MediaType != ocispec.MediaTypeImageManifest {
		t.Errorf("documents say %q and %q", index.MediaType, m.MediaType)
	}
}

// multi stores an index with two platforms and BuildKit's attestation of one.
func (s *store) multi(t testing.TB) (root, attested ocispec.Descriptor) {
	t.Helper()
	shared := s.gzipLayer(t, ocispec.MediaTypeImageLayerGzip, "shared")
	amd := s.manifest(t, "amd64", shared, s.gzipLayer(t, ocispec.MediaTypeImageLayerGzip, "amd64"))
	arm := s.manifest(t, "arm64", shared, s.gzipLayer(t, ocispec.MediaTypeImageLayerGzip, "arm64"))
	amd.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	arm.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm64"}

	statement := s.add(t, "application/vnd.in-toto+json", []byte("statement"))
	config := s.add(t, ocispec.MediaTypeImageConfig, ocispec.Image{
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{statement.Digest}},
	})
	attestation := s.add(t, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{statement},
	})
	attestation.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	attestation.Annotations = map[string]string{
		"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": amd.Digest.String(),
	}
	return s.add(t, ocispec.MediaTypeImageIndex, ocispec.Index{
		MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{amd, arm, attestation},
		Annotations: map[string]string{"of the index": "kept"},
	}), arm
}

func TestAllPlatforms(t *testing.T) {
	s := newStore()
	root, _ := s.multi(t)
	w := newWorld(t, s, root)
	w.Choice = oci.Choice{All: true}
	result := w.run(t)
	index := read[ocispec.Index](t, w, result.Root)
	if len(index.Manifests) != 3 || index.Annotations["of the index"] != "kept" {
		t.Fatalf("index: %+v", index)
	}
	for i, architecture := range []string{"amd64", "arm64", "unknown"} {
		if got := index.Manifests[i].Platform.Architecture; got != architecture {
			t.Errorf("entry %d is for %s, want %s", i, got, architecture)
		}
	}
	if got := index.Manifests[2].Annotations["vnd.docker.reference.digest"]; got != index.Manifests[0].Digest.String() {
		t.Errorf("attestation is of %s, not of the new manifest %s", got, index.Manifests[0].Digest)
	}
	if result.Converted != 3 {
		t.Errorf("%d layers converted, want 3: the shared one once", result.Converted)
	}
	attestation := read[ocispec.Manifest](t, w, index.Manifests[2])
	if _, err := oci.CID(attestation.Layers[0]); err != nil || attestation.Layers[0].MediaType != "application/vnd.in-toto+json" {
		t.Errorf("attestation's layer: %+v, %v", attestation.Layers[0], err)
	}
}

// TestOnePlatform has only the blobs of one platform, as after a pull.
func TestOnePlatform(t *testing.T) {
	s := newStore()
	root, absent := s.multi(t)
	delete(s.blobs, absent.Digest)
	w := newWorld(t, s, root)
	w.Choice = oci.Choice{Platforms: []string{"linux/amd64"}}
	index := read[ocispec.Index](t, w, w.run(t).Root)
	if len(index.Manifests) != 1 || index.Manifests[0].Platform.Architecture != "amd64" {
		t.Errorf("index: %+v", index)
	}

	w = newWorld(t, s, root)
	w.Choice = oci.Choice{All: true}
	_, err := Run(context.Background(), w.Job)
	if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), absent.Digest.String()) {
		t.Errorf("all platforms with one absent: %v", err)
	}
}

func TestDeterministic(t *testing.T) {
	s := newStore()
	root, _ := s.multi(t)
	var results []Result
	for range 3 {
		w := newWorld(t, s, root)
		w.Choice = oci.Choice{All: true}
		results = append(results, w.run(t))
	}
	for _, r := range results[1:] {
		if !reflect.DeepEqual(r, results[0]) {
			t.Errorf("results differ:\n%+v\n%+v", results[0], r)
		}
	}
}

// TestPushAgain converts what a conversion made: nothing changes any more.
func TestPushAgain(t *testing.T) {
	s := newStore()
	w := newWorld(t, s, s.manifest(t, "amd64", s.gzipLayer(t, ocispec.MediaTypeImageLayerGzip, "a")))
	first := w.run(t)
	again := newWorld(t, s, first.Root)
	again.Source = w.Provider()
	second := again.run(t)
	if second.Root.Digest != first.Root.Digest || second.Kept != 1 || second.Converted != 0 {
		t.Errorf("first %+v, second %+v", first, second)
	}
}

func TestLayersThatStay(t *testing.T) {
	s := newStore()
	encrypted := s.gzipLayer(t, ocispec.MediaTypeImageLayerGzip+"+encrypted", "a")
	broken := layerOf{s.add(t, ocispec.MediaTypeImageLayerGzip, gzipped(t, []byte("no tar at all, though it is long enough for a header of one"+strings.Repeat(".", 600)))), digest.FromString("x")}
	strange := layerOf{s.add(t, images.MediaTypeErofsLayer, []byte("erofs")), digest.FromString("y")}
	manifest := s.manifest(t, "amd64", encrypted, broken, strange)
	w := newWorld(t, s, manifest)
	result := w.run(t)
	m := read[ocispec.Manifest](t, w, result.Root)
	for i, l := range []layerOf{encrypted, broken, strange} {
		if m.Layers[i].Digest != l.Digest || m.Layers[i].MediaType != l.MediaType {
			t.Errorf("layer %d became %+v", i, m.Layers[i])
		}
		if m.Layers[i].Annotations[oci.AnnotationTOCDigest] != "" {
			t.Errorf("layer %d says that it is lazy", i)
		}
		if !slices.ContainsFunc(result.Warnings, func(s string) bool { return strings.Contains(s, l.Digest.String()) }) {
			t.Errorf("no warning about layer %d", i)
		}
	}
	if result.Plain != 3 {
		t.Errorf("%d layers are plain, want 3", result.Plain)
	}
	// No diff ID changed, so the config is the same bytes.
	if want := read[ocispec.Manifest](t, w, manifest).Config.Digest; m.Config.Digest != want {
		t.Errorf("config became %s, was %s", m.Config.Digest, want)
	}
}

// TestWrongAnnotation has a lazy layer whose annotation is of another TOC.
func TestWrongAnnotation(t *testing.T) {
	s := newStore()
	lazy, toc := s.lazyLayer(t, "a")
	lazy.Annotations = map[string]string{oci.AnnotationTOCDigest: digest.FromString("other").String()}
	lazy.URLs = []string{"ipfs://bafkqaaa", "https://example.com/a"}
	w := newWorld(t, s, s.manifest(t, "amd64", lazy))
	result := w.run(t)
	l := read[ocispec.Manifest](t, w, result.Root).Layers[0]
	if l.Annotations[oci.AnnotationTOCDigest] != toc.String() || len(result.Warnings) != 1 {
		t.Errorf("annotated with %s, want %s; warnings %q", l.Annotations[oci.AnnotationTOCDigest], toc, result.Warnings)
	}
	if len(l.URLs) != 2 || l.URLs[0] == "ipfs://bafkqaaa" || l.URLs[1] != "https://example.com/a" {
		t.Errorf("URLs %q: a stale CID goes, others stay", l.URLs)
	}
}

func TestRunRefuses(t *testing.T) {
	ctx := context.Background()
	s := newStore()
	good := s.gzipLayer(t, ocispec.MediaTypeImageLayerGzip, "a")
	foreign := s.gzipLayer(t, images.MediaTypeDockerSchema2LayerForeignGzip, "b")
	nonDistributable := good
	nonDistributable.MediaType = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
	absent := good
	absent.Digest = digest.FromString("absent")
	short := good
	short.Size--
	bent := good
	bent.Digest = digest.FromString("bent")
	s.blobs[bent.Digest] = bytes.Repeat([]byte{1}, int(good.Size))
	fewer := s.add(t, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Config: s.add(t, ocispec.MediaTypeImageConfig, ocispec.Image{}), Layers: []ocispec.Descriptor{good.Descriptor},
	})
	for _, tt := range []struct {
		name string
		root ocispec.Descriptor
		want error
	}{
		{"foreign layer", s.manifest(t, "amd64", foreign), ErrNonDistributable},
		{"non-distributable layer", s.manifest(t, "amd64", nonDistributable), ErrNonDistributable},
		{"absent layer", s.manifest(t, "amd64", absent), ErrMissing},
		{"wrong size", s.manifest(t, "amd64", short), oci.ErrInvalid},
		{"wrong bytes", s.manifest(t, "amd64", bent), oci.ErrInvalid},
		{"fewer diff IDs", fewer, oci.ErrInvalid},
		{"empty index", s.add(t, ocispec.MediaTypeImageIndex, ocispec.Index{}), oci.ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, s, tt.root)
			w.Choice.All = true
			if _, err := Run(ctx, w.Job); !errors.Is(err, tt.want) {
				t.Errorf("Run = %v, want %v", err, tt.want)
			}
		})
	}
}

// TestTroubleIsNotTheLayers: what is wrong with this machine must not make an
// image that is not lazy.
func TestTroubleIsNotTheLayers(t *testing.T) {
	s := newStore()
	root := s.manifest(t, "amd64", s.gzipLayer(t, ocispec.MediaTypeImageLayerGzip, "a"))
	for name, trouble := range map[string]error{
		"disk full":  &os.PathError{Op: "write", Path: "/tmp/x", Err: syscall.ENOSPC},
		"connection": fmt.Errorf("read: %w", errdefs.ErrUnavailable),
	} {
		w := newWorld(t, s, root)
		w.Layer = func(context.Context, *io.SectionReader, io.Writer, []string) (estargz.Digests, error) {
			return estargz.Digests{}, trouble
		}
		if _, err := Run(context.Background(), w.Job); !errors.Is(err, trouble) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w := newWorld(t, s, root)
	boom := errors.New("boom")
	w.Store = func(context.Context, Blob) (cid.Cid, error) { return cid.Undef, boom }
	if _, err := Run(context.Background(), w.Job); !errors.Is(err, boom) {
		t.Errorf("store fails: %v", err)
	}
}

func TestCancel(t *testing.T) {
	s := newStore()
	layers := []layerOf{}
	for i := range 8 {
		layers = append(layers, s.gzipLayer(t, ocispec.MediaTypeImageLayerGzip, fmt.Sprint(i)))
	}
	w := newWorld(t, s, s.manifest(t, "amd64", layers...))
	ctx, cancel := context.WithCancel(context.Background())
	w.Layer = func(ctx context.Context, _ *io.SectionReader, _ io.Writer, _ []string) (estargz.Digests, error) {
		cancel()
		<-ctx.Done()
		return estargz.Digests{}, ctx.Err()
	}
	if _, err := Run(ctx, w.Job); !errors.Is(err, context.Canceled) {
		t.Errorf("Run = %v", err)
	}
}
