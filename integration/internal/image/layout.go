package image

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// annotationImageName is how containerd's importer names an image.
const annotationImageName = "io.containerd.image.name"

func blobPath(dir string, d digest.Digest) string {
	return filepath.Join(dir, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// writeLayout writes an OCI layout of one image into the new folder dir.
func writeLayout(ctx context.Context, dir, name string, config ocispec.ImageConfig, layers []Layer) error {
	if err := os.MkdirAll(filepath.Join(dir, ocispec.ImageBlobsDir, "sha256"), 0o755); err != nil {
		return err
	}
	platform := ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	created := epoch
	image := ocispec.Image{
		Created:  &created,
		Platform: platform,
		Config:   config,
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
	}
	for i, l := range layers {
		desc, diffID, err := writeLayer(ctx, dir, l)
		if err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		manifest.Layers = append(manifest.Layers, desc)
		image.RootFS.DiffIDs = append(image.RootFS.DiffIDs, diffID)
		image.History = append(image.History, ocispec.History{Created: &created, CreatedBy: fmt.Sprintf("layer %d", i)})
	}
	var err error
	if manifest.Config, err = writeJSON(dir, ocispec.MediaTypeImageConfig, image); err != nil {
		return err
	}
	desc, err := writeJSON(dir, ocispec.MediaTypeImageManifest, manifest)
	if err != nil {
		return err
	}
	desc.Platform = &platform
	desc.Annotations = map[string]string{annotationImageName: name, ocispec.AnnotationRefName: name}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{desc},
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, ocispec.ImageIndexFile), index, 0o644); err != nil {
		return err
	}
	version := fmt.Sprintf("{%q:%q}", "imageLayoutVersion", ocispec.ImageLayoutVersion)
	return os.WriteFile(filepath.Join(dir, ocispec.ImageLayoutFile), []byte(version), 0o644)
}

func writeJSON(dir, mediaType string, v any) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	return desc, os.WriteFile(blobPath(dir, desc.Digest), b, 0o644)
}

// writeLayer writes a layer's blob and gives its descriptor and the digest of
// its uncompressed bytes.
func writeLayer(ctx context.Context, dir string, l Layer) (_ ocispec.Descriptor, diffID digest.Digest, err error) {
	f, err := os.CreateTemp(dir, ".layer-")
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	blob, diff := sha256.New(), sha256.New()
	z := gzip.NewWriter(io.MultiWriter(f, blob))
	w := tar.NewWriter(io.MultiWriter(z, diff))
	if err := l(ctx, w); err != nil {
		return ocispec.Descriptor{}, "", err
	}
	if err := w.Close(); err != nil {
		return ocispec.Descriptor{}, "", err
	}
	if err := z.Close(); err != nil {
		return ocispec.Descriptor{}, "", err
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return ocispec.Descriptor{}, "", err
	}
	desc := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerGzip,
		Digest:    digest.NewDigest(digest.SHA256, blob),
		Size:      size,
	}
	return desc, digest.NewDigest(digest.SHA256, diff), os.Rename(f.Name(), blobPath(dir, desc.Digest))
}

// open reads the layout in dir and checks each blob against its digest. The
// error is [io/fs.ErrNotExist] where nothing is there yet.
func open(dir, name string) (*Image, error) {
	b, err := os.ReadFile(filepath.Join(dir, ocispec.ImageIndexFile))
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	if len(index.Manifests) != 1 {
		return nil, fmt.Errorf("%s: %d manifests in the index, want 1", dir, len(index.Manifests))
	}
	im := &Image{Name: name, Dir: dir, Manifest: index.Manifests[0]}
	if err := verify(dir, im.Manifest); err != nil {
		return nil, err
	}
	if b, err = os.ReadFile(im.Blob(im.Manifest)); err != nil {
		return nil, err
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(b, &manifest); err != nil {
		return nil, fmt.Errorf("%s: manifest: %w", dir, err)
	}
	im.Config, im.Layers = manifest.Config, manifest.Layers
	for _, d := range append([]ocispec.Descriptor{im.Config}, im.Layers...) {
		if err := verify(dir, d); err != nil {
			return nil, err
		}
	}
	return im, nil
}

func verify(dir string, d ocispec.Descriptor) error {
	path := blobPath(dir, d.Digest)
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("blob %s is not there: %w", d.Digest, err)
	}
	defer f.Close()
	v := d.Digest.Verifier()
	if _, err := io.Copy(v, f); err != nil {
		return err
	}
	if !v.Verified() {
		return fmt.Errorf("blob %s has other bytes than its digest says", path)
	}
	return nil
}

// WriteArchive writes the image as an OCI archive: the layout in one tar, as
// `ctr images import` reads it.
func (im *Image) WriteArchive(w io.Writer) error {
	names := []string{ocispec.ImageLayoutFile, ocispec.ImageIndexFile}
	seen := map[digest.Digest]bool{}
	for _, d := range append([]ocispec.Descriptor{im.Manifest, im.Config}, im.Layers...) {
		if !seen[d.Digest] {
			seen[d.Digest] = true
			names = append(names, filepath.Join(ocispec.ImageBlobsDir, d.Digest.Algorithm().String(), d.Digest.Encoded()))
		}
	}
	tw := tar.NewWriter(w)
	for _, name := range names {
		if err := addFile(tw, filepath.Join(im.Dir, name), name); err != nil {
			return fmt.Errorf("archive of %s: %w", im.Name, err)
		}
	}
	return tw.Close()
}

func addFile(tw *tar.Writer, path, name string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: st.Size(), ModTime: epoch}); err != nil {
		return err
	}
	_, err = io.Copy(tw, f)
	return err
}

// epoch is the time of all that has no time of its own.
var epoch = time.Date(2024, time.February, 29, 12, 0, 0, 0, time.UTC)
