package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
	"github.com/ipfs-stargz/ipfs-stargz/image/progress"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

func options(d Daemon, c cid.Cid) PullOptions {
	return PullOptions{
		Ref: c.String(), Name: c.String(), Platform: "linux/amd64",
		Snapshotter: DefaultSnapshotter, Daemon: d, Progress: progress.Discard(),
	}
}

// manifestOf reads the manifest for amd64 of a pushed image.
func manifestOf(t testing.TB, d Daemon, c cid.Cid) (desc ocispec.Descriptor, m ocispec.Manifest) {
	t.Helper()
	ctx := context.Background()
	root, err := readRoot(ctx, d, c)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := oci.ReadTree(ctx, fetcher{d}, root)
	if err != nil {
		t.Fatal(err)
	}
	n := tree.Leaves()[0]
	if err := n.ReadManifest(ctx, fetcher{d}); err != nil {
		t.Fatal(err)
	}
	return n.Desc, *n.Manifest
}

func TestPullLazy(t *testing.T) {
	d := newDaemon()
	pushed := push(t, d, twoPlatforms(t, ""))
	desc, m := manifestOf(t, d, pushed.CID)
	ctx, c := newContainerd(t)
	result, err := pull(ctx, c.Client, pushed.CID, options(d, pushed.CID))
	if err != nil {
		t.Fatal(err)
	}
	if result.Layers != 2 || result.FetchedFull != 0 || result.Target.Digest != pushed.Target.Digest || result.Platform != "linux/amd64" {
		t.Errorf("result: %+v", result)
	}
	if want := pushed.Target.Size + desc.Size + m.Config.Size; result.FetchedBytes != want {
		t.Errorf("%d bytes fetched, want %d: the documents of one platform", result.FetchedBytes, want)
	}
	img, err := c.ImageService().Get(ctx, pushed.CID.String())
	if err != nil || img.Target.Digest != pushed.Target.Digest {
		t.Errorf("image: %+v, %v", img, err)
	}
	for i, labels := range c.lazy.prepared {
		l := m.Layers[i]
		for key, want := range map[string]string{
			oci.AnnotationCID:                            strings.TrimPrefix(l.URLs[0], "ipfs://"),
			oci.AnnotationTOCDigest:                      l.Annotations[oci.AnnotationTOCDigest],
			"containerd.io/snapshot/cri.layer-digest":    l.Digest.String(),
			"containerd.io/snapshot/cri.manifest-digest": desc.Digest.String(),
			"containerd.io/snapshot/cri.image-ref":       pushed.CID.String(),
		} {
			if labels[key] != want {
				t.Errorf("layer %d: label %s = %q, want %q", i, key, labels[key], want)
			}
		}
	}
	if len(c.lazy.prepared) != 2 {
		t.Errorf("%d layers prepared", len(c.lazy.prepared))
	}
	// Nothing of a lazy layer is fetched, and the collector leaves the rest.
	if _, err := c.db.GarbageCollect(ctx); err != nil {
		t.Fatal(err)
	}
	for what, want := range map[digest.Digest]bool{
		pushed.Target.Digest: true, desc.Digest: true, m.Config.Digest: true, m.Layers[0].Digest: false,
	} {
		if got := c.exists(ctx, t, what); got != want {
			t.Errorf("%s in the content store: %v, want %v", what, got, want)
		}
	}
	config, err := oci.ReadConfig(ctx, fetcher{d}, m)
	if err != nil {
		t.Fatal(err)
	}
	top := identity.ChainID(config.RootFS.DiffIDs).String()
	if _, err := c.SnapshotService(DefaultSnapshotter).Stat(ctx, top); err != nil {
		t.Errorf("the image's snapshot: %v", err)
	}
	if left, err := c.LeasesService().List(ctx); err != nil || len(left) != 0 {
		t.Errorf("leases left: %v, %v", left, err)
	}
}

// TestPullFallsBack has a snapshotter that does not take the first layer, so
// that containerd fetches it and, as it does, the one above it.
func TestPullFallsBack(t *testing.T) {
	d := newDaemon()
	pushed := push(t, d, twoPlatforms(t, ""), "linux/amd64")
	_, m := manifestOf(t, d, pushed.CID)
	ctx, c := newContainerd(t)
	first, err := oci.CID(m.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	c.lazy.refuse[first.String()] = true
	o := options(d, pushed.CID)
	o.Name = "example.com/a:1"
	result, err := pull(ctx, c.Client, pushed.CID, o)
	if err != nil {
		t.Fatal(err)
	}
	if result.Name != "example.com/a:1" || result.FetchedFull == 0 || result.FetchedBytes < m.Layers[0].Size {
		t.Errorf("result: %+v", result)
	}
	info, err := c.ContentStore().Info(ctx, m.Layers[0].Digest)
	if err != nil || info.Labels["containerd.io/uncompressed"] == "" {
		t.Errorf("first layer was not unpacked: %+v, %v", info, err)
	}
	if _, err := c.ImageService().Get(ctx, pushed.CID.String()); !errdefs.IsNotFound(err) {
		t.Errorf("the image has the CID as name, too: %v", err)
	}
}

// TestPullOfAnotherTool has an image as nerdctl pushes it: CIDs are in the URLs
// alone.
func TestPullOfAnotherTool(t *testing.T) {
	d := newDaemon()
	pushed := push(t, d, twoPlatforms(t, ""), "linux/amd64")
	_, m := manifestOf(t, d, pushed.CID)
	for i := range m.Layers {
		delete(m.Layers[i].Annotations, oci.AnnotationCID)
	}
	// Where URL and annotation differ the URL counts, as for other tools.
	m.Layers[0].Annotations[oci.AnnotationCID] = pushed.CID.String()
	root := d.addRoot(t, d.addBlob(t, ocispec.MediaTypeImageManifest, m))
	ctx, c := newContainerd(t)
	result, err := pull(ctx, c.Client, root, options(d, root))
	if err != nil {
		t.Fatal(err)
	}
	if result.FetchedFull != 0 {
		t.Errorf("%d layers were fetched", result.FetchedFull)
	}
	for i, labels := range c.lazy.prepared {
		if got, want := labels[oci.AnnotationCID], strings.TrimPrefix(m.Layers[i].URLs[0], "ipfs://"); got != want {
			t.Errorf("layer %d: CID %q, want %q", i, got, want)
		}
	}
}

// hostile makes images that lie.
type hostile struct {
	t testing.TB
	d *memoryDaemon
}

func (h hostile) manifest(change func(*ocispec.Manifest)) ocispec.Descriptor {
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	layer := h.d.addBlob(h.t, ocispec.MediaTypeImageLayerGzip, gzipped(h.t, tarball(h.t, "a", []byte("a"))))
	m.Layers = []ocispec.Descriptor{layer}
	m.Config = h.config(tarball(h.t, "a", []byte("a")))
	change(&m)
	return h.d.addBlob(h.t, ocispec.MediaTypeImageManifest, m)
}

func (h hostile) config(tarballs ...[]byte) ocispec.Descriptor {
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	config.RootFS.Type = "layers"
	for _, b := range tarballs {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(b))
	}
	return h.d.addBlob(h.t, ocispec.MediaTypeImageConfig, config)
}

func (h hostile) index(entries ...ocispec.Descriptor) ocispec.Descriptor {
	return h.d.addBlob(h.t, ocispec.MediaTypeImageIndex, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: entries})
}

func (h hostile) nested(depth int) ocispec.Descriptor {
	desc := h.manifest(func(*ocispec.Manifest) {})
	for range depth {
		desc = h.index(desc)
	}
	return desc
}

func TestPullHostile(t *testing.T) {
	d := newDaemon()
	h := hostile{t, d}
	good := h.manifest(func(*ocispec.Manifest) {})
	edit := func(change func(*ocispec.Descriptor)) ocispec.Descriptor {
		desc := good
		change(&desc)
		return desc
	}
	layer := func(change func(*ocispec.Descriptor)) ocispec.Descriptor {
		return h.manifest(func(m *ocispec.Manifest) { change(&m.Layers[0]) })
	}
	other := digest.FromString("other")
	for _, tt := range []struct {
		name string
		root ocispec.Descriptor
		want error // nil: any
	}{
		{"root with another digest", edit(func(d *ocispec.Descriptor) { d.Digest = other }), nil},
		{"root too short", edit(func(d *ocispec.Descriptor) { d.Size-- }), nil},
		{"root too long", edit(func(d *ocispec.Descriptor) { d.Size++ }), nil},
		{"root over the limit", edit(func(d *ocispec.Descriptor) { d.Size = oci.MaxDocumentBytes + 1 }), oci.ErrLimit},
		{"root of another scheme", edit(func(d *ocispec.Descriptor) { d.URLs = []string{"http://127.0.0.1:1/x"} }), oci.ErrNoCID},
		{"root that is a layer", edit(func(d *ocispec.Descriptor) { d.MediaType = ocispec.MediaTypeImageLayer }), oci.ErrNotRoot},
		{"index that is a manifest", edit(func(d *ocispec.Descriptor) { d.MediaType = ocispec.MediaTypeImageIndex }), nil},
		{"config of another scheme", h.manifest(func(m *ocispec.Manifest) { m.Config.URLs = []string{"file:///etc/passwd"} }), oci.ErrNoCID},
		{"config over the limit", h.manifest(func(m *ocispec.Manifest) { m.Config.Size = 1 << 40 }), oci.ErrLimit},
		{"config with another digest", h.manifest(func(m *ocispec.Manifest) { m.Config.Digest = other }), nil},
		{"more layers than diff IDs", h.manifest(func(m *ocispec.Manifest) { m.Config = h.config() }), nil},
		{"layer of another scheme", layer(func(d *ocispec.Descriptor) { d.URLs = []string{"https://127.0.0.1:1/x"} }), oci.ErrNoCID},
		{"layer with another digest", layer(func(d *ocispec.Descriptor) { d.Digest = other }), nil},
		{"layer with a path as digest", layer(func(d *ocispec.Descriptor) { d.Digest = "sha256:../../etc" }), oci.ErrInvalid},
		{"layer too short", layer(func(d *ocispec.Descriptor) { d.Size-- }), nil},
		{"layer too long", layer(func(d *ocispec.Descriptor) { d.Size++ }), nil},
		{"layer of negative size", layer(func(d *ocispec.Descriptor) { d.Size = -1 }), oci.ErrInvalid},
		{"layer with another diff ID", h.manifest(func(m *ocispec.Manifest) { m.Config = h.config([]byte("other")) }), nil},
		{"too many layers", h.manifest(func(m *ocispec.Manifest) {
			for len(m.Layers) <= oci.MaxLayers {
				m.Layers = append(m.Layers, m.Layers[0])
			}
		}), oci.ErrLimit},
		{"nested too deep", h.nested(oci.MaxIndexDepth + 1), oci.ErrLimit},
		{"no platform fits", h.index(func() ocispec.Descriptor {
			desc := good
			desc.Platform = &ocispec.Platform{OS: "plan9", Architecture: "amd64"}
			return desc
		}()), oci.ErrNoPlatform},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, c := newContainerd(t)
			root := d.addRoot(t, tt.root)
			_, err := pull(ctx, c.Client, root, options(d, root))
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("pull = %v, want %v", err, tt.want)
			}
			if all, err := c.ImageService().List(ctx); err != nil || len(all) != 0 {
				t.Errorf("images left: %v, %v", all, err)
			}
			if left, err := c.LeasesService().List(ctx); err != nil || len(left) != 0 {
				t.Errorf("leases left: %v, %v", left, err)
			}
			committed := 0
			if err := c.SnapshotService(DefaultSnapshotter).Walk(ctx, func(_ context.Context, i snapshots.Info) error {
				if i.Kind == snapshots.KindActive {
					return fmt.Errorf("snapshot %s is left", i.Name)
				}
				committed++
				return nil
			}); err != nil || committed != 0 {
				t.Errorf("%d snapshots, %v", committed, err)
			}
		})
	}
}

func TestPullNestedIndex(t *testing.T) {
	d := newDaemon()
	root := d.addRoot(t, hostile{t, d}.nested(oci.MaxIndexDepth))
	ctx, c := newContainerd(t)
	if _, err := pull(ctx, c.Client, root, options(d, root)); err != nil {
		t.Error(err)
	}
}

func TestPullErrors(t *testing.T) {
	d := newDaemon()
	h := hostile{t, d}
	good := h.manifest(func(*ocispec.Manifest) {})
	root := d.addRoot(t, good)
	ctx, c := newContainerd(t)

	t.Run("unknown CID", func(t *testing.T) {
		unknown := newDaemon().add(t, []byte("unknown"))
		_, err := pull(ctx, c.Client, unknown, options(d, unknown))
		var missing *ipfs.UnavailableError
		if !errors.As(err, &missing) || !strings.Contains(err.Error(), unknown.String()) {
			t.Errorf("pull = %v", err)
		}
	})
	t.Run("provider gone in the middle", func(t *testing.T) {
		var m ocispec.Manifest
		data, err := oci.Read(ctx, fetcher{d}, good)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		gone, err := oci.CID(m.Layers[0])
		if err != nil {
			t.Fatal(err)
		}
		d.Delete(gone)
		_, err = pull(ctx, c.Client, root, options(d, root))
		var missing *ipfs.UnavailableError
		if !errors.As(err, &missing) || !strings.Contains(err.Error(), gone.String()) || !strings.Contains(err.Error(), m.Layers[0].Digest.String()) {
			t.Errorf("pull = %v", err)
		}
	})
	t.Run("not an image", func(t *testing.T) {
		page := d.add(t, []byte("<html>"))
		_, err := pull(ctx, c.Client, page, options(d, page))
		if !errors.Is(err, oci.ErrNotRoot) || !strings.Contains(err.Error(), "text/html") {
			t.Errorf("pull = %v", err)
		}
	})
	t.Run("a layer", func(t *testing.T) {
		blob := d.add(t, gzipped(t, large(300<<10, 2)))
		_, err := pull(ctx, c.Client, blob, options(d, blob))
		if !errors.Is(err, oci.ErrNotRoot) || !strings.Contains(err.Error(), "gzip") {
			t.Errorf("pull = %v", err)
		}
	})
	t.Run("not this platform", func(t *testing.T) {
		o := options(d, root)
		o.Platform = "linux/arm64"
		if _, err := pull(ctx, c.Client, root, o); !errors.Is(err, oci.ErrNoPlatform) || !strings.Contains(err.Error(), "linux/amd64") {
			t.Errorf("pull = %v", err)
		}
	})
	t.Run("no CID", func(t *testing.T) {
		if _, err := Pull(ctx, PullOptions{Ref: "alpine"}); err == nil || !strings.Contains(err.Error(), "not a CID") {
			t.Errorf("Pull = %v", err)
		}
	})
	t.Run("no containerd", func(t *testing.T) {
		_, err := Pull(ctx, PullOptions{Ref: root.String(), Containerd: Containerd{Address: t.TempDir() + "/sock"}})
		if !errors.Is(err, ErrNoContainerd) {
			t.Errorf("Pull = %v", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		cancelled, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := pull(cancelled, c.Client, root, options(d, root)); !errors.Is(err, context.Canceled) {
			t.Errorf("pull = %v", err)
		}
	})
}

// TestBlobReaderGoesOn: an interrupted fetch continues where it was.
func TestBlobReaderGoesOn(t *testing.T) {
	ctx := context.Background()
	d := newDaemon()
	data := large(600<<10, 3)
	desc := d.addBlob(t, ocispec.MediaTypeImageLayer, data)
	r, err := fetcher{d}.open(ctx, desc)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, off := range []int64{0, 10, 300 << 10, 5, int64(len(data)) - 4} {
		if _, err := r.Seek(off, 0); err != nil {
			t.Fatal(err)
		}
		var got [4]byte
		if _, err := r.Read(got[:]); err != nil || string(got[:]) != string(data[off:off+4]) {
			t.Errorf("at %d: %x, %v", off, got, err)
		}
	}
	if _, err := r.Seek(-1, 0); err == nil {
		t.Error("seek before the beginning gave no error")
	}
	if at, err := r.Seek(-4, 2); err != nil || at != int64(len(data))-4 {
		t.Errorf("seek from the end: %d, %v", at, err)
	}
}
