package convert

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ipfs-stargz/ipfs-stargz/image/estargz"
	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
)

// namesOf are the names in a layer of the result, in order.
func namesOf(t testing.TB, w *world, desc ocispec.Descriptor) (names []string) {
	t.Helper()
	ra, err := w.Provider().ReaderAt(context.Background(), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer ra.Close()
	zr, err := gzip.NewReader(io.NewSectionReader(ra, 0, ra.Size()))
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(zr); ; {
		h, err := r.Next()
		if err == io.EOF {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
}

// several stores a layer with files.
func (s *store) several(t testing.TB, names ...string) layerOf {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, name := range names {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return layerOf{s.add(t, ocispec.MediaTypeImageLayerGzip, gzipped(t, b.Bytes())), digest.FromBytes(b.Bytes())}
}

// TestFirst puts files first in some layers, also in those that are lazy
// already, and in these for another time.
func TestFirst(t *testing.T) {
	s := newStore()
	plain, other := s.several(t, "a", "b", "c"), s.several(t, "d", "e")
	plain.Annotations = map[string]string{zstdChunkedPrefix + "position": "of the blob that goes"}
	w := newWorld(t, s, s.manifest(t, "amd64", plain, other))
	check := func(w *world, result Result, want ...[]string) {
		t.Helper()
		m := read[ocispec.Manifest](t, w, result.Root)
		config := read[struct{ RootFS ocispec.RootFS }](t, w, m.Config)
		for i, l := range m.Layers {
			if got := namesOf(t, w, l); !slices.Equal(got, append(want[i], lastName)) {
				t.Errorf("layer %d: %q, want %q", i, got, want[i])
			}
			if config.RootFS.DiffIDs[i] != blobDiffID(t, w, l) {
				t.Errorf("layer %d: the config has another diff ID", i)
			}
			for k := range l.Annotations {
				if strings.HasPrefix(k, zstdChunkedPrefix) {
					t.Errorf("layer %d: %s is of another blob", i, k)
				}
			}
		}
	}
	w.First = map[digest.Digest][]string{plain.Digest: {"c", "b"}}
	first := w.run(t)
	check(w, first, []string{"c", "b", ".prefetch.landmark", "a"}, []string{".no.prefetch.landmark", "d", "e"})
	if first.Converted != 2 {
		t.Errorf("%+v", first)
	}

	// All is lazy now.
	layers := read[ocispec.Manifest](t, w, first.Root).Layers
	again := newWorld(t, s, first.Root)
	again.Source = w.Provider()
	again.First = map[digest.Digest][]string{layers[0].Digest: nil, layers[1].Digest: {"e"}}
	second := again.run(t)
	check(again, second, []string{".no.prefetch.landmark", "c", "b", "a"}, []string{"e", ".prefetch.landmark", "d"})
	if second.Converted != 2 || second.Kept != 0 {
		t.Errorf("%+v", second)
	}

	// Without a wish nothing changes any more.
	third := newWorld(t, s, second.Root)
	third.Source = again.Provider()
	if got := third.run(t); got.Root.Digest != second.Root.Digest || got.Kept != 2 {
		t.Errorf("%+v", got)
	}
}

// lastName is the last name in every eStargz.
const lastName = "stargz.index.json"

// TestFirstCannotBe has a lazy layer that cannot be converted anew: it stays
// lazy.
func TestFirstCannotBe(t *testing.T) {
	s := newStore()
	lazy, toc := s.lazyLayer(t, "a")
	lazy.Annotations = map[string]string{zstdChunkedPrefix + "position": "of the kept blob"}
	w := newWorld(t, s, s.manifest(t, "amd64", lazy))
	w.First = map[digest.Digest][]string{lazy.Digest: {"a"}}
	w.Layer = func(context.Context, *io.SectionReader, io.Writer, []string) (estargz.Digests, error) {
		return estargz.Digests{}, estargz.ErrNotConvertible
	}
	result := w.run(t)
	l := read[ocispec.Manifest](t, w, result.Root).Layers[0]
	if l.Digest != lazy.Digest || l.Annotations[oci.AnnotationTOCDigest] != toc.String() || len(l.Annotations) != 3 {
		t.Errorf("%+v", l)
	}
	if result.Kept != 1 || result.Plain != 0 || len(result.Warnings) != 1 {
		t.Errorf("%+v", result)
	}
}
