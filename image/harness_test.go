package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/introspection"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/ipfs-stargz/ipfs-stargz/image/layout"
	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
)

func TestMain(m *testing.M) {
	// containerd's content store warns of a file system without fs-verity.
	if err := log.SetLevel("error"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// memoryDaemon is a [Daemon] with its blocks in memory. It verifies what it is
// given, as the real one does, and keeps what it is told to pin.
type memoryDaemon struct {
	*blockstest.Memory
	mu     sync.Mutex
	pinned []cid.Cid
}

func newDaemon() *memoryDaemon { return &memoryDaemon{Memory: blockstest.NewMemory()} }

func (d *memoryDaemon) Cat(ctx context.Context, path string, offset, length int64) (io.ReadCloser, error) {
	c, err := cid.Decode(path)
	if err != nil {
		return nil, err
	}
	f, err := ipfs.OpenFile(ctx, d, "", c, 1<<40)
	if err != nil {
		return nil, err
	}
	if length < 0 || length > f.Size()-offset {
		length = f.Size() - offset
	}
	return io.NopCloser(io.NewSectionReader(contextAt{ctx, f}, offset, length)), nil
}

func (d *memoryDaemon) ImportCAR(ctx context.Context, roots []cid.Cid, produce func(ipfs.PutFunc) error) error {
	err := produce(func(ctx context.Context, b blocks.Block) error {
		if err := ipfs.Verify(b.Cid(), b.RawData()); err != nil {
			return err
		}
		return d.Put(ctx, b)
	})
	if err != nil {
		return err
	}
	if err := d.Get(ctx, ipfs.Want{CIDs: roots}, func(cid.Cid, []byte) error { return nil }); err != nil {
		return fmt.Errorf("pin: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pinned = append(d.pinned, roots...)
	return nil
}

// add stores a file and returns its CID.
func (d *memoryDaemon) add(t testing.TB, data []byte) cid.Cid {
	t.Helper()
	c, _, err := importer.File(context.Background(), bytes.NewReader(data), d.Put)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// addBlob stores v, as it is or as JSON, and returns its descriptor.
func (d *memoryDaemon) addBlob(t testing.TB, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	data := encode(t, v)
	return ocispec.Descriptor{
		MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data)),
		URLs: []string{oci.URL(d.add(t, data))},
	}
}

// addRoot stores the descriptor of an image and returns the image's CID.
func (d *memoryDaemon) addRoot(t testing.TB, desc ocispec.Descriptor) cid.Cid {
	t.Helper()
	return d.add(t, encode(t, desc))
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	if data, ok := v.([]byte); ok {
		return data
	}
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// tarball is a layer with one file.
func tarball(t testing.TB, name string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := tw.Write(data); err != nil {
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

// blobs is a source image in memory.
type blobs map[digest.Digest][]byte

type readerAt struct{ *bytes.Reader }

func (readerAt) Close() error { return nil }

func (b blobs) ReaderAt(_ context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	data, ok := b[desc.Digest]
	if !ok {
		return nil, errdefs.ErrNotFound
	}
	return readerAt{bytes.NewReader(data)}, nil
}

func (b blobs) add(t testing.TB, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	data := encode(t, v)
	b[digest.FromBytes(data)] = data
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
}

// manifest adds an image of gzip layers, one for each tarball.
func (b blobs) manifest(t testing.TB, architecture string, tarballs ...[]byte) ocispec.Descriptor {
	t.Helper()
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: architecture}}
	config.RootFS.Type = "layers"
	for _, data := range tarballs {
		m.Layers = append(m.Layers, b.add(t, ocispec.MediaTypeImageLayerGzip, gzipped(t, data)))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(data))
	}
	m.Config = b.add(t, ocispec.MediaTypeImageConfig, config)
	d := b.add(t, ocispec.MediaTypeImageManifest, m)
	d.Platform = &config.Platform
	return d
}

// archive writes the image as an OCI archive and returns its path.
func (b blobs) archive(t testing.TB, root ocispec.Descriptor, name string) string {
	t.Helper()
	var all []ocispec.Descriptor
	for _, d := range slices.Sorted(maps.Keys(b)) {
		all = append(all, ocispec.Descriptor{Digest: d, Size: int64(len(b[d]))})
	}
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := layout.WriteArchive(context.Background(), path, root, name, all, b); err != nil {
		t.Fatal(err)
	}
	return path
}

// large is contents of many blocks that do not compress.
func large(n int, seed byte) []byte {
	data := make([]byte, n)
	x := uint32(seed) + 1
	for i := range data {
		x = x*1664525 + 1013904223
		data[i] = byte(x >> 24)
	}
	return data
}

// push pushes the image at path and fails the test if that fails.
func push(t testing.TB, d Daemon, path string, platforms ...string) PushResult {
	t.Helper()
	r, err := Push(context.Background(), PushOptions{
		Image: path, Daemon: d, TempDir: t.TempDir(), Platforms: platforms, AllPlatforms: len(platforms) == 0,
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// lazySnapshotter takes layers as lazy that have the labels for it, as the
// snapshotter of this project does, and leaves them empty. It keeps what it
// was asked.
type lazySnapshotter struct {
	snapshots.Snapshotter
	refuse map[string]bool // layers, by CID, that it does not take

	mu       sync.Mutex
	prepared []map[string]string // labels
}

func (l *lazySnapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	var info snapshots.Info
	for _, o := range opts {
		if err := o(&info); err != nil {
			return nil, err
		}
	}
	l.mu.Lock()
	l.prepared = append(l.prepared, info.Labels)
	l.mu.Unlock()
	m, err := l.Snapshotter.Prepare(ctx, key, parent, opts...)
	ref, root := info.Labels[snapshots.LabelSnapshotRef], info.Labels[oci.AnnotationCID]
	if err != nil || ref == "" || root == "" || info.Labels[oci.AnnotationTOCDigest] == "" || l.refuse[root] {
		return m, err
	}
	if err := l.Snapshotter.Commit(ctx, ref, key, opts...); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("lazy: %w", errdefs.ErrAlreadyExists)
}

// services are what of containerd a client needs beside its stores.
type services struct {
	introspection.Service
	diff.Comparer
	diff.Applier
}

func (services) Plugins(context.Context, ...string) (*introspectionapi.PluginsResponse, error) {
	return &introspectionapi.PluginsResponse{Plugins: []*introspectionapi.Plugin{{}}}, nil
}

// inProcess is containerd's own client on containerd's own stores and
// unpacker, without the process.
type inProcess struct {
	*containerd.Client
	db   *metadata.DB
	lazy *lazySnapshotter
}

func newContainerd(t testing.TB) (context.Context, *inProcess) {
	t.Helper()
	dir := t.TempDir()
	store, err := local.NewStore(filepath.Join(dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	sn, err := native.NewSnapshotter(filepath.Join(dir, "snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	bolt, err := bbolt.Open(filepath.Join(dir, "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	lazy := &lazySnapshotter{Snapshotter: sn, refuse: map[string]bool{}}
	db := metadata.NewDB(bolt, store, map[string]snapshots.Snapshotter{DefaultSnapshotter: lazy})
	ctx := namespaces.WithNamespace(context.Background(), DefaultContainerdNamespace)
	if err := db.Init(ctx); err != nil {
		t.Fatal(err)
	}
	some := services{Applier: apply.NewFileSystemApplier(db.ContentStore())}
	client, err := containerd.New("", containerd.WithServices(
		containerd.WithContentStore(db.ContentStore()),
		containerd.WithImageStore(metadata.NewImageStore(db)),
		containerd.WithLeasesService(metadata.NewLeaseManager(db)),
		containerd.WithSnapshotters(map[string]snapshots.Snapshotter{DefaultSnapshotter: db.Snapshotter(DefaultSnapshotter)}),
		containerd.WithDiffService(some),
		containerd.WithIntrospectionService(some),
	))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		sn.Close()
		bolt.Close()
	})
	return ctx, &inProcess{client, db, lazy}
}

// exists tells whether the content store has a blob.
func (c *inProcess) exists(ctx context.Context, t testing.TB, d digest.Digest) bool {
	t.Helper()
	_, err := c.ContentStore().Info(ctx, d)
	if err != nil && !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil
}

// noTemp fails the test if anything is left in dir.
func noTemp(t testing.TB, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left in the temporary directory: %v, %v", left, err)
	}
}
