package layout

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
)

// memory is an image in memory, of blobs that need not be an image's.
type memory map[digest.Digest][]byte

func (m memory) add(data string) ocispec.Descriptor {
	d := digest.FromString(data)
	m[d] = []byte(data)
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: int64(len(data))}
}

func (m memory) ReaderAt(_ context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	data, ok := m[desc.Digest]
	if !ok {
		return nil, errdefs.ErrNotFound
	}
	return section{io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data)))}, nil
}

// write makes an archive of three blobs, the last of which is the root.
func write(t *testing.T, name string) (path string, m memory, blobs []ocispec.Descriptor) {
	t.Helper()
	m = memory{}
	blobs = []ocispec.Descriptor{m.add("layer"), m.add(strings.Repeat("x", 1<<20+7)), m.add("root")}
	path = filepath.Join(t.TempDir(), "image.tar")
	if err := WriteArchive(context.Background(), path, blobs[2], name, append(blobs, blobs[0]), m); err != nil {
		t.Fatal(err)
	}
	return path, m, blobs
}

// unpack makes a layout directory of an archive.
func unpack(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dir := t.TempDir()
	for tr := tar.NewReader(f); ; {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, hdr.Name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	ctx := context.Background()
	path, m, blobs := write(t, "example.com/a:1")
	for _, path := range []string{path, unpack(t, path)} {
		l, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, ref := range []string{"", "example.com/a:1"} {
			root, err := l.Image(ref)
			if err != nil {
				t.Fatal(err)
			}
			if root.Digest != blobs[2].Digest {
				t.Errorf("image %q is %s, want %s", ref, root.Digest, blobs[2].Digest)
			}
		}
		for _, b := range blobs {
			ra, err := l.ReaderAt(ctx, b)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(io.NewSectionReader(ra, 0, ra.Size()))
			if err != nil || !bytes.Equal(got, m[b.Digest]) {
				t.Errorf("blob %s: %d bytes, %v", b.Digest, len(got), err)
			}
			ra.Close()
		}
		if _, err := l.ReaderAt(ctx, memory{}.add("absent")); !errdefs.IsNotFound(err) {
			t.Errorf("absent blob: %v", err)
		}
		if _, err := l.ReaderAt(ctx, ocispec.Descriptor{Digest: "sha256:../../index.json"}); !errors.Is(err, oci.ErrInvalid) {
			t.Errorf("bad digest: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestWriteArchiveIsDeterministic(t *testing.T) {
	a, _, _ := write(t, "x")
	b, _, _ := write(t, "x")
	one, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	two, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one, two) {
		t.Error("two archives of one image differ")
	}
	if n := bytes.Count(one, []byte("blobs/sha256/")); n != 3 {
		t.Errorf("%d blobs in the archive, want 3, each once", n)
	}
}

func TestWriteArchiveLeavesNothingOnError(t *testing.T) {
	dir := t.TempDir()
	m := memory{}
	there, absent := m.add("there"), memory{}.add("absent")
	path := filepath.Join(dir, "image.tar")
	err := WriteArchive(context.Background(), path, there, "", []ocispec.Descriptor{there, absent}, m)
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), absent.Digest.String()) {
		t.Errorf("WriteArchive = %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := WriteArchive(ctx, path, there, "", []ocispec.Descriptor{there}, m); !errors.Is(err, context.Canceled) {
		t.Errorf("WriteArchive = %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// files writes a layout directory of the given files.
func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestImageByName(t *testing.T) {
	named := func(data string, names ...string) ocispec.Descriptor {
		d := memory{}.add(data)
		d.Annotations = map[string]string{}
		for i, key := range []string{ocispec.AnnotationRefName, "io.containerd.image.name"} {
			if i < len(names) {
				d.Annotations[key] = names[i]
			}
		}
		return d
	}
	one, two := named("1", "1", "example.com/a:1"), named("2", "2", "example.com/a:2")
	open := func(entries ...ocispec.Descriptor) *Layout {
		index, err := json.Marshal(ocispec.Index{Manifests: entries})
		if err != nil {
			t.Fatal(err)
		}
		l, err := Open(writeFiles(t, map[string]string{
			"oci-layout": `{"imageLayoutVersion":"1.0.0"}`, "index.json": string(index),
		}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	l := open(one, two)
	for ref, want := range map[string]digest.Digest{"1": one.Digest, "2": two.Digest, "example.com/a:2": two.Digest} {
		if got, err := l.Image(ref); err != nil || got.Digest != want {
			t.Errorf("Image(%q) = %s, %v; want %s", ref, got.Digest, err, want)
		}
	}
	if _, err := l.Image(""); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `"1", "2"`) {
		t.Errorf("no name among two: %v", err)
	}
	if _, err := l.Image("3"); !errdefs.IsNotFound(err) {
		t.Errorf("unknown name: %v", err)
	}
	if _, err := open().Image(""); !errdefs.IsNotFound(err) {
		t.Errorf("empty layout: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	var docker bytes.Buffer
	tw := tar.NewWriter(&docker)
	if err := writeJSON(tw, "manifest.json", []string{}); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	files := writeFiles(t, map[string]string{
		"zipped": zipped.String(), "docker": docker.String(), "empty": "", "text": strings.Repeat("text ", 500),
	})
	for name, says := range map[string]string{
		"zipped": "compressed", "docker": "skopeo copy docker-archive:", "empty": "no file oci-layout", "text": "not a tar archive",
	} {
		_, err := Open(filepath.Join(files, name))
		if !errors.Is(err, ErrNotLayout) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want an error that says %q", name, err, says)
		}
	}
	for says, layout := range map[string]string{"version": `{"imageLayoutVersion":"2.0.0"}`, "oci-layout": `x`} {
		if _, err := Open(writeFiles(t, map[string]string{"oci-layout": layout})); !errors.Is(err, ErrNotLayout) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", layout, err)
		}
	}
	if _, err := Open(filepath.Join(files, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
}

// TestLinksStayInside has a blob that is a symbolic link to a file outside the
// layout.
func TestLinksStayInside(t *testing.T) {
	path, _, blobs := write(t, "")
	dir := unpack(t, path)
	blob := filepath.Join(dir, blobName(blobs[0].Digest))
	if err := os.Remove(blob); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, blob); err != nil {
		t.Fatal(err)
	}
	l, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if ra, err := l.ReaderAt(context.Background(), blobs[0]); err == nil {
		ra.Close()
		t.Error("a link out of the layout was followed")
	}
}

func FuzzOpenArchive(f *testing.F) {
	var good bytes.Buffer
	tw := tar.NewWriter(&good)
	m := memory{}
	root := m.add("root")
	if err := writeLayout(context.Background(), tw, root, "name", []ocispec.Descriptor{root}, m); err != nil {
		f.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add([]byte{0x1f, 0x8b, 8})
	f.Add(make([]byte, 1024))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "x.tar")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := Open(path)
		if err != nil {
			return
		}
		defer l.Close()
		if desc, err := l.Image(""); err == nil {
			if ra, err := l.ReaderAt(context.Background(), desc); err == nil {
				if _, err := ra.ReadAt(make([]byte, 16), 0); err == nil && ra.Size() < 16 {
					t.Error("read past the end of a blob")
				}
				ra.Close()
			}
		}
	})
}
