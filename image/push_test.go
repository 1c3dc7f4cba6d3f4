package image

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ipfs-stargz/ipfs-stargz/image/convert"
	"github.com/ipfs-stargz/ipfs-stargz/image/layout"
	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
)

// twoPlatforms is an archive with an index, whose platforms share a layer of
// many blocks.
func twoPlatforms(t testing.TB, name string) string {
	b := blobs{}
	shared := tarball(t, "shared", large(700<<10, 1))
	amd := b.manifest(t, "amd64", shared, tarball(t, "amd64", []byte("amd64")))
	arm := b.manifest(t, "arm64", shared, tarball(t, "arm64", []byte("arm64")))
	index := b.add(t, ocispec.MediaTypeImageIndex, ocispec.Index{
		MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{amd, arm},
	})
	return b.archive(t, index, name)
}

func TestPushIsDeterministic(t *testing.T) {
	// The number of processors, the name and the daemon are no part of it.
	first := push(t, newDaemon(), twoPlatforms(t, "example.com/a:1"))
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	again := push(t, newDaemon(), twoPlatforms(t, "example.com/b:2"))
	if first.CID != again.CID {
		t.Errorf("two pushes of one image: %s and %s", first.CID, again.CID)
	}
	if first.Converted != 3 {
		t.Errorf("%d layers converted, want 3", first.Converted)
	}
}

// TestPushedIsWhole walks the image as its readers do, and checks that all of
// it is pinned.
func TestPushedIsWhole(t *testing.T) {
	ctx := context.Background()
	d := newDaemon()
	result := push(t, d, twoPlatforms(t, ""))
	pinned := map[string]bool{}
	for _, c := range d.pinned {
		pinned[c.String()] = true
	}
	if !pinned[result.CID.String()] {
		t.Error("the root is not pinned")
	}
	root, err := readRoot(ctx, d, result.CID)
	if err != nil {
		t.Fatal(err)
	}
	if root.Digest != result.Target.Digest || len(root.Annotations) != 0 || root.Platform != nil {
		t.Errorf("root: %+v", root)
	}
	tree, err := oci.ReadTree(ctx, fetcher{d}, root)
	if err != nil {
		t.Fatal(err)
	}
	all := []ocispec.Descriptor{root}
	for _, n := range tree.Leaves() {
		if err := n.ReadManifest(ctx, fetcher{d}); err != nil {
			t.Fatal(err)
		}
		all = append(append(all, n.Desc, n.Manifest.Config), n.Manifest.Layers...)
	}
	for _, desc := range all {
		c, err := oci.CID(desc)
		if err != nil {
			t.Fatal(err)
		}
		if !pinned[c.String()] {
			t.Errorf("%s %s is not pinned", desc.MediaType, c)
		}
		f, err := ipfs.OpenFile(ctx, d, "", c, desc.Size)
		if err != nil {
			t.Fatal(err)
		}
		got, err := digest.FromReader(io.NewSectionReader(contextAt{ctx, f}, 0, f.Size()))
		if err != nil || got != desc.Digest || f.Size() != desc.Size {
			t.Errorf("%s: file has digest %s and %d bytes, want %s and %d; %v", c, got, f.Size(), desc.Digest, desc.Size, err)
		}
	}
	if want := 8; result.Blobs != want { // index, 2 manifests, 2 configs, 3 layers
		t.Errorf("%d blobs, want %d", result.Blobs, want)
	}
}

// TestPushProfile checks that each blob has the CID that any tool gives it that
// keeps to the profile, and that the image is otherwise the same.
func TestPushProfile(t *testing.T) {
	ctx := context.Background()
	d := newDaemon()
	o := PushOptions{Image: twoPlatforms(t, ""), Daemon: d, TempDir: t.TempDir(), AllPlatforms: true, Profile: importer.UnixFS2025}
	standard, err := Push(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	_, m := manifestOf(t, d, standard.CID)
	_, ours := manifestOf(t, d, push(t, d, o.Image).CID)
	for i, l := range m.Layers {
		c, err := oci.CID(l)
		if err != nil {
			t.Fatal(err)
		}
		f, err := ipfs.OpenFile(ctx, d, "", c, l.Size)
		if err != nil {
			t.Fatal(err)
		}
		want, _, err := importer.ByProfile(ctx, o.Profile, io.NewSectionReader(contextAt{ctx, f}, 0, f.Size()), newDaemon().Put)
		if err != nil || want != c {
			t.Errorf("layer %d: %s, want %s, %v", i, c, want, err)
		}
		if l.Digest != ours.Layers[i].Digest {
			t.Errorf("layer %d: %s, without the profile %s", i, l.Digest, ours.Layers[i].Digest)
		}
	}
	o.Profile = "unixfs-v0-2015"
	if _, err := Push(ctx, o); !errors.Is(err, importer.ErrProfile) {
		t.Errorf("unknown profile: %v", err)
	}
}

func TestPushOutput(t *testing.T) {
	ctx := context.Background()
	d := newDaemon()
	out := filepath.Join(t.TempDir(), "out.tar")
	temp := t.TempDir()
	result, err := Push(ctx, PushOptions{
		Image: "oci-archive:" + twoPlatforms(t, "example.com/a:1"), Daemon: d,
		Platforms: []string{"linux/arm64"}, Output: out, TempDir: temp,
	})
	if err != nil {
		t.Fatal(err)
	}
	noTemp(t, temp)
	l, err := layout.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	root, err := l.Image("example.com/a:1")
	if err != nil || root.Digest != result.Target.Digest {
		t.Fatalf("archive holds %s, %v; pushed was %s", root.Digest, err, result.Target.Digest)
	}
	// It is pushed again with nothing to do, and gives the same CID.
	again := push(t, newDaemon(), out)
	if again.CID != result.CID || again.Converted != 0 || again.Kept != 2 {
		t.Errorf("pushed again: %+v; was %s", again, result.CID)
	}
}

func TestPushErrors(t *testing.T) {
	b := blobs{}
	manifest := b.manifest(t, "amd64", tarball(t, "a", []byte("a")))
	for d := range b {
		if d != manifest.Digest {
			delete(b, d)
		}
	}
	incomplete := b.archive(t, manifest, "")
	complete := twoPlatforms(t, "")
	noDir := filepath.Join(t.TempDir(), "no", "such")
	for _, tt := range []struct {
		name string
		o    PushOptions
		want error
		says string
	}{
		{"nothing there", PushOptions{Image: "nothing", Containerd: Containerd{Address: noDir}}, ErrNoContainerd, noDir},
		{"no such file", PushOptions{Image: "oci-archive:" + noDir}, os.ErrNotExist, noDir},
		{"no such image in it", PushOptions{Image: complete + ":nothing"}, errdefs.ErrNotFound, "nothing"},
		{"not complete", PushOptions{Image: incomplete}, convert.ErrMissing, "--platform"},
		{"no such platform", PushOptions{Image: complete, Platforms: []string{"plan9/amd64"}}, oci.ErrNoPlatform, "linux/amd64, linux/arm64"},
		{"output cannot be written", PushOptions{Image: complete, AllPlatforms: true, Output: filepath.Join(noDir, "x")}, os.ErrNotExist, noDir},
		{"no room for temporary files", PushOptions{Image: complete, TempDir: noDir}, os.ErrNotExist, noDir},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.o.TempDir == "" {
				tt.o.TempDir = t.TempDir()
				defer noTemp(t, tt.o.TempDir)
			}
			tt.o.Daemon = newDaemon()
			_, err := Push(context.Background(), tt.o)
			if !strings.Contains(errString(err), tt.says) || !errors.Is(err, tt.want) {
				t.Errorf("Push = %v, want %v that says %q", err, tt.want, tt.says)
			}
		})
	}
}

func errString(err error) string {
	if err == nil {
		return "no error"
	}
	return err.Error()
}

// stoppingDaemon cancels a push in the middle of a layer.
type stoppingDaemon struct {
	*memoryDaemon
	cancel context.CancelFunc
}

func (d stoppingDaemon) ImportCAR(ctx context.Context, _ []cid.Cid, produce func(ipfs.PutFunc) error) error {
	return d.memoryDaemon.ImportCAR(ctx, nil, func(put ipfs.PutFunc) error {
		d.cancel()
		return produce(put)
	})
}

func TestPushCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	temp := t.TempDir()
	_, err := Push(ctx, PushOptions{
		Image: twoPlatforms(t, ""), AllPlatforms: true, TempDir: temp, Daemon: stoppingDaemon{newDaemon(), cancel},
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Push = %v", err)
	}
	noTemp(t, temp)
}

// TestRootIsNerdctls checks the root to the letter: a descriptor with its URL.
func TestRootIsNerdctls(t *testing.T) {
	d := newDaemon()
	result := push(t, d, twoPlatforms(t, ""))
	rc, err := d.Cat(context.Background(), result.CID.String(), 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	var root map[string]any
	if err := json.NewDecoder(rc).Decode(&root); err != nil {
		t.Fatal(err)
	}
	if len(root) != 4 || root["mediaType"] != ocispec.MediaTypeImageIndex || root["digest"] != result.Target.Digest.String() ||
		root["size"] != float64(result.Target.Size) || root["urls"].([]any)[0] != result.Target.URLs[0] {
		t.Errorf("root: %v", root)
	}
}
