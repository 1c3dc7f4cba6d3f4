package convert

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"

	"github.com/ipfs-stargz/ipfs-stargz/image/estargz"
	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
	"github.com/ipfs-stargz/ipfs-stargz/image/progress"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// store is an image's source: blobs in memory, which counts how often each is
// opened.
type store struct {
	mu     sync.Mutex
	blobs  map[digest.Digest][]byte
	opened map[digest.Digest]int
}

func newStore() *store {
	return &store{blobs: map[digest.Digest][]byte{}, opened: map[digest.Digest]int{}}
}

type readerAt struct{ *bytes.Reader }

func (readerAt) Close() error { return nil }

func (s *store) ReaderAt(_ context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened[desc.Digest]++
	data, ok := s.blobs[desc.Digest]
	if !ok {
		return nil, fmt.Errorf("blob: %w", errdefs.ErrNotFound)
	}
	return readerAt{bytes.NewReader(data)}, nil
}

// add stores v as it is if it is bytes, else as JSON.
func (s *store) add(t testing.TB, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	data, ok := v.([]byte)
	if !ok {
		var err error
		if data, err = json.Marshal(v); err != nil {
			t.Fatal(err)
		}
	}
	d := digest.FromBytes(data)
	s.blobs[d] = data
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

// tarball is a layer with one file.
func tarball(t testing.TB, name, data string) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(tw, data); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layerOf is a layer and the diff ID of its tar.
type layerOf struct {
	ocispec.Descriptor
	diffID digest.Digest
}

func (s *store) gzipLayer(t testing.TB, mediaType, name string) layerOf {
	t.Helper()
	data := tarball(t, name, "contents of "+name)
	return layerOf{s.add(t, mediaType, gzipped(t, data)), digest.FromBytes(data)}
}

// manifest stores an image of these layers, of OCI's media types.
func (s *store) manifest(t testing.TB, architecture string, layers ...layerOf) ocispec.Descriptor {
	t.Helper()
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	rootfs := ocispec.RootFS{Type: "layers"}
	for _, l := range layers {
		m.Layers = append(m.Layers, l.Descriptor)
		rootfs.DiffIDs = append(rootfs.DiffIDs, l.diffID)
	}
	m.Config = s.add(t, ocispec.MediaTypeImageConfig, map[string]any{
		"os": "linux", "architecture": architecture, "rootfs": rootfs,
		"history": []string{"kept"}, "unknown to us": map[string]int{"kept": 1},
	})
	return s.add(t, ocispec.MediaTypeImageManifest, m)
}

// lazyLayer stores a layer that is eStargz already, without annotations.
func (s *store) lazyLayer(t testing.TB, name string) (layerOf, digest.Digest) {
	t.Helper()
	data := tarball(t, name, "contents of "+name)
	var b bytes.Buffer
	info, err := With(estargz.Options{})(context.Background(), io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data))), &b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return layerOf{s.add(t, ocispec.MediaTypeImageLayerGzip, b.Bytes()), info.DiffID}, info.TOC
}

// world is a job and what it is connected to.
type world struct {
	Job
	*store
	ipfs   *blockstest.Memory
	mu     sync.Mutex
	stored map[digest.Digest]int // calls of Store
	cuts   map[digest.Digest]int // that Store was given
}

func newWorld(t testing.TB, s *store, root ocispec.Descriptor) *world {
	t.Helper()
	w := &world{store: s, ipfs: blockstest.NewMemory(), stored: map[digest.Digest]int{}, cuts: map[digest.Digest]int{}}
	w.Job = Job{
		Source: s, Root: root, Dir: t.TempDir(), Layer: With(estargz.Options{}), Progress: progress.Discard(),
		Store: func(ctx context.Context, b Blob) (cid.Cid, error) {
			c, _, err := importer.File(ctx, b.Reader, w.ipfs.Put)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.stored[b.Digest]++
			w.cuts[b.Digest] = len(b.Cuts)
			return c, err
		},
	}
	return w
}

func (w *world) run(t testing.TB) Result {
	t.Helper()
	result, err := Run(context.Background(), w.Job)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// read reads a document of the result.
func read[T any](t testing.TB, w *world, desc ocispec.Descriptor) T {
	t.Helper()
	data, err := oci.Read(context.Background(), fetcher(w.Provider()), desc)
	if err != nil {
		t.Fatal(err)
	}
	var v T
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// blobDiffID computes the diff ID of a gzip layer of the result.
func blobDiffID(t testing.TB, w *world, desc ocispec.Descriptor) digest.Digest {
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
	d, err := digest.FromReader(zr)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
