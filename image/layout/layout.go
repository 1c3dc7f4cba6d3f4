// Package layout reads and writes images as files: OCI image layouts, as a
// directory or as a tar archive of one (docker save, skopeo, podman, buildx and
// ctr write these). See
// https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md.
//
// An archive is not unpacked: its entries are found once, and read where they
// are.
package layout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
)

// ErrNotLayout is wrapped by errors about files that hold no OCI image layout.
var ErrNotLayout = errors.New("not an OCI image layout")

// Layout is an OCI image layout that is open for reading. It implements
// [content.Provider] for its blobs, whose bytes are not verified here. It is
// safe for concurrent use.
type Layout struct {
	path  string
	files files
}

var _ content.Provider = (*Layout)(nil)

// files gets the files of a layout by their slash-separated names.
type files interface {
	// open returns the file called name, or an error that wraps
	// [fs.ErrNotExist].
	open(name string) (content.ReaderAt, error)
	io.Closer
}

// Open opens the layout at path: a directory, or a tar archive that is not
// compressed.
func Open(path string) (*Layout, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	l := &Layout{path: path}
	if info.IsDir() {
		l.files, err = openDir(path)
	} else {
		l.files, err = openTar(path)
	}
	if err != nil {
		return nil, err
	}
	if err := l.check(); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Close releases the layout's files.
func (l *Layout) Close() error { return l.files.Close() }

// check reads the file that marks a layout.
func (l *Layout) check() error {
	data, err := l.read(ocispec.ImageLayoutFile)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := l.read("manifest.json"); err == nil {
			return fmt.Errorf("%s is an archive of the old Docker form (manifest.json only): copy it with `skopeo copy docker-archive:%s oci-archive:NEW` first: %w", l.path, l.path, ErrNotLayout)
		}
		return fmt.Errorf("%s has no file %s: %w", l.path, ocispec.ImageLayoutFile, ErrNotLayout)
	}
	if err != nil {
		return err
	}
	var mark ocispec.ImageLayout
	if err := json.Unmarshal(data, &mark); err != nil {
		return fmt.Errorf("%s: %s: %w: %w", l.path, ocispec.ImageLayoutFile, err, ErrNotLayout)
	}
	if !strings.HasPrefix(mark.Version, "1.") {
		return fmt.Errorf("%s is a layout of version %.20q, 1.0.0 is supported: %w", l.path, mark.Version, ErrNotLayout)
	}
	return nil
}

// read gets a small file of the layout.
func (l *Layout) read(name string) ([]byte, error) {
	ra, err := l.files.open(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.path, err)
	}
	defer ra.Close()
	if ra.Size() > oci.MaxDocumentBytes {
		return nil, fmt.Errorf("%s: %s has %d bytes, at most %d are read: %w", l.path, name, ra.Size(), oci.MaxDocumentBytes, oci.ErrLimit)
	}
	data := make([]byte, ra.Size())
	if n, err := ra.ReadAt(data, 0); n < len(data) {
		return nil, fmt.Errorf("%s: read %s: %w", l.path, name, err)
	}
	return data, nil
}

// Image finds an image of the layout in its index.json: the only one if ref
// is "", else the one of that name (annotation
// "org.opencontainers.image.ref.name" or "io.containerd.image.name").
func (l *Layout) Image(ref string) (ocispec.Descriptor, error) {
	data, err := l.read(ocispec.ImageIndexFile)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("%s: %s: %w: %w", l.path, ocispec.ImageIndexFile, err, oci.ErrInvalid)
	}
	var names []string
	found := index.Manifests
	if ref != "" {
		found = nil
		for _, d := range index.Manifests {
			these := []string{d.Annotations[ocispec.AnnotationRefName], d.Annotations[images.AnnotationImageName]}
			if slices.Contains(these, ref) {
				found = append(found, d)
			}
		}
	}
	for _, d := range index.Manifests {
		names = append(names, fmt.Sprintf("%q", d.Annotations[ocispec.AnnotationRefName]))
	}
	switch {
	case len(found) == 1:
		return found[0], oci.Check(found[0])
	case len(index.Manifests) == 0:
		return ocispec.Descriptor{}, fmt.Errorf("%s holds no image: %w", l.path, errdefs.ErrNotFound)
	case len(found) == 0:
		return ocispec.Descriptor{}, fmt.Errorf("%s holds no image called %q, only %s: %w", l.path, ref, strings.Join(names, ", "), errdefs.ErrNotFound)
	default:
		return ocispec.Descriptor{}, fmt.Errorf("%s holds %d images, say which: PATH:NAME, where NAME is one of %s: %w",
			l.path, len(found), strings.Join(names, ", "), errdefs.ErrInvalidArgument)
	}
}

// ReaderAt opens a blob of the layout. The error wraps [errdefs.ErrNotFound] if
// it is not there.
func (l *Layout) ReaderAt(_ context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("digest %.200q: %w: %w", desc.Digest, err, oci.ErrInvalid)
	}
	ra, err := l.files.open(blobName(desc.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s has no blob %s: %w", l.path, desc.Digest, errdefs.ErrNotFound)
	}
	return ra, err
}

// blobName is the name of a blob's file in every layout.
func blobName(d digest.Digest) string {
	return ocispec.ImageBlobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

// dir is a layout in a directory; os.Root keeps symbolic links inside it.
type dir struct{ root *os.Root }

func openDir(path string) (files, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return dir{root}, nil
}

func (d dir) Close() error { return d.root.Close() }

func (d dir) open(name string) (content.ReaderAt, error) {
	f, err := d.root.Open(filepath.FromSlash(name))
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if !info.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s is not a regular file: %w", name, ErrNotLayout)
	}
	return file{f, info.Size()}, nil
}

// file is a blob that is a file of its own.
type file struct {
	*os.File
	size int64
}

func (f file) Size() int64 { return f.size }
