package image

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestLayouts builds each crafted image twice: the bytes are the same, and
// another tool takes the layout for an OCI image.
func TestLayouts(t *testing.T) {
	for _, r := range []Recipe{Crafted(), Odd()} {
		t.Run(r.Name, func(t *testing.T) {
			first, err := NewStore(t.TempDir()).Get(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			second, err := NewStore(t.TempDir()).Get(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			if first.Manifest.Digest != second.Manifest.Digest {
				t.Errorf("two builds give %s and %s", first.Manifest.Digest, second.Manifest.Digest)
			}
			if out, err := exec.CommandContext(t.Context(), "skopeo", "inspect", "oci:"+first.Dir).CombinedOutput(); err != nil {
				t.Errorf("skopeo inspect: %v\n%s", err, out)
			}
			for i, l := range first.Layers {
				checkOrder(t, i, first.Blob(l))
			}
		})
	}
}

// checkOrder finds an entry whose folder or hard link target has no entry
// before it, and a path that has two.
func checkOrder(t *testing.T, number int, blob string) {
	t.Helper()
	f, err := os.Open(blob)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]byte{".": tar.TypeDir}
	r := tar.NewReader(z)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("layer %d: %v", number, err)
		}
		name := path.Clean(h.Name)
		if _, twice := kinds[name]; twice {
			t.Errorf("layer %d: %q is there twice", number, name)
		}
		kinds[name] = h.Typeflag
		if kinds[path.Dir(name)] != tar.TypeDir {
			t.Errorf("layer %d: %q comes before its folder", number, name)
		}
		if _, ok := kinds[path.Clean(h.Linkname)]; h.Typeflag == tar.TypeLink && !ok {
			t.Errorf("layer %d: %q comes before its target %q", number, name, h.Linkname)
		}
	}
}

// TestCraftedHasAll counts that no kind of change was missed by the draw.
func TestCraftedHasAll(t *testing.T) {
	layers, err := Crafted().Layers(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	if len(layers) != craftedLayers {
		t.Fatalf("%d layers, want %d", len(layers), craftedLayers)
	}
	found := map[string]int{}
	below := map[string]byte{}
	for _, l := range layers {
		pr, pw := io.Pipe()
		go func() {
			w := tar.NewWriter(pw)
			pw.CloseWithError(errors.Join(l(context.Background(), w), w.Close()))
		}()
		here := map[string]byte{}
		r := tar.NewReader(pr)
		for {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			name, base := path.Clean(h.Name), path.Base(h.Name)
			switch {
			case base == ".wh..wh..opq":
				found["opaque"]++
			case strings.HasPrefix(base, ".wh."):
				found["whiteout"]++
			case h.Typeflag == tar.TypeLink:
				found["hard link"]++
			case below[name] != 0 && below[name] != h.Typeflag:
				found[string(below[name])+" by "+string(h.Typeflag)]++
			}
			here[name] = h.Typeflag
		}
		for name, kind := range here {
			below[name] = kind
		}
	}
	for _, want := range []string{"opaque", "whiteout", "hard link"} {
		if found[want] < 10 {
			t.Errorf("%s: %d times, want 10 at least", want, found[want])
		}
	}
	kinds := []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeFifo, tar.TypeChar}
	for _, from := range kinds {
		for _, to := range kinds {
			if replaced := string(from) + " by " + string(to); from != to && found[replaced] == 0 {
				t.Errorf("no tar type %s is replaced", replaced)
			}
		}
	}
}

// TestStoreMends builds an image anew when a blob has changed.
func TestStoreMends(t *testing.T) {
	s := NewStore(t.TempDir())
	r := Recipe{Name: "small", Layers: func(context.Context, string, string) ([]Layer, error) {
		return []Layer{entries([]entry{regular("file", 0o644, "text")})}, nil
	}}
	im, err := s.Get(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	blob := im.Blob(im.Layers[0])
	if err := os.WriteFile(blob, []byte("something else"), 0o644); err != nil {
		t.Fatal(err)
	}
	if im, err = s.Get(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(blob)
	if err != nil || digest.FromBytes(b) != im.Layers[0].Digest {
		t.Errorf("the blob was not mended: %v", err)
	}
}

// TestArchive reads back what WriteArchive writes.
func TestArchive(t *testing.T) {
	im, err := NewStore(t.TempDir()).Get(t.Context(), Crafted())
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "image.tar")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(im.WriteArchive(f), f.Close()); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "skopeo", "inspect", "--format", "{{.Digest}}", "oci-archive:"+name).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != im.Manifest.Digest.String() {
		t.Errorf("skopeo inspect: %v, %s; want %s", err, out, im.Manifest.Digest)
	}
	if want := im.Manifest.Size + im.Config.Size + sum(im.Layers); im.Size() != want {
		t.Errorf("size %d, want %d", im.Size(), want)
	}
}

func sum(list []ocispec.Descriptor) (size int64) {
	for _, d := range list {
		size += d.Size
	}
	return size
}
