// Package image makes the OCI images that the integration tests and the demo
// run: real ones from Debian packages, without debootstrap and with no network
// but apt's, and crafted ones that hold everything an image can hold.
//
// A [Recipe] says what an image is made of; a [Store] builds it once as an OCI
// layout, with layers of gzipped tar as any build tool writes them, and gives
// the same again to whoever asks next. The same recipe and packages give the
// same bytes.
package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Recipe says what an image is made of.
type Recipe struct {
	// Name is the image's short name, as "python"; in containerd it is
	// called "test.local/python:latest".
	Name string
	// Config is what the image's containers run.
	Config ocispec.ImageConfig
	// Layers gives the layers, the lowest first. tmp is a folder for what
	// they need while they are written; cache one that is kept.
	Layers func(ctx context.Context, cache, tmp string) ([]Layer, error)
}

// Layer writes the entries of one layer, except for the end of the archive.
type Layer func(ctx context.Context, w *tar.Writer) error

// Image is an OCI image layout on disk, with one manifest.
type Image struct {
	// Name is what containerd calls the image once it is imported.
	Name string
	// Dir is the OCI layout.
	Dir string
	// Manifest describes the image's manifest.
	Manifest ocispec.Descriptor
	// Config and Layers are what the manifest says, the lowest layer first.
	Config ocispec.Descriptor
	Layers []ocispec.Descriptor
}

// Size is the number of bytes that have to be moved to have the whole image:
// manifest, config and layers.
func (im *Image) Size() int64 {
	size := im.Manifest.Size + im.Config.Size
	for _, l := range im.Layers {
		size += l.Size
	}
	return size
}

// Blob is the path of a blob of the image.
func (im *Image) Blob(d ocispec.Descriptor) string { return blobPath(im.Dir, d.Digest) }

// Store keeps built images in a folder. Processes may share it.
type Store struct{ dir string }

// NewStore gives the store in dir, which need not exist yet.
func NewStore(dir string) *Store { return &Store{dir: dir} }

// source is what recipes are made of beside their names: any change of this
// package's code builds all images anew.
//
//go:embed *.go
var source embed.FS

// Get gives the image of a recipe: the one in the store if its blobs still
// have their digests, else it is built.
func (s *Store) Get(ctx context.Context, r Recipe) (*Image, error) {
	key, err := recipeKey(r)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(filepath.Join(s.dir, r.Name+".lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()

	dir := filepath.Join(s.dir, r.Name+"-"+key)
	im, err := open(dir, imageName(r))
	if err == nil {
		return im, nil
	}
	if _, serr := os.Stat(dir); serr == nil {
		fmt.Fprintf(os.Stderr, "image %s is built anew: %v\n", r.Name, err)
	}
	if err := s.build(ctx, r, dir); err != nil {
		return nil, fmt.Errorf("building image %s: %w", r.Name, err)
	}
	return open(dir, imageName(r))
}

// build writes the image beside its place and moves it there, so that what is
// in the store is complete.
func (s *Store) build(ctx context.Context, r Recipe, dir string) error {
	old, err := filepath.Glob(filepath.Join(s.dir, r.Name+"-*"))
	if err != nil {
		return err
	}
	for _, o := range old {
		if err := os.RemoveAll(o); err != nil {
			return err
		}
	}
	tmp, err := os.MkdirTemp(s.dir, ".building-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	layers, err := r.Layers(ctx, s.dir, tmp)
	if err != nil {
		return err
	}
	layout := filepath.Join(tmp, "layout")
	if err := writeLayout(ctx, layout, imageName(r), r.Config, layers); err != nil {
		return err
	}
	return os.Rename(layout, dir)
}

func imageName(r Recipe) string { return "test.local/" + r.Name + ":latest" }

// recipeKey names a recipe's contents, in 12 hexadecimal digits.
func recipeKey(r Recipe) (string, error) {
	files, err := fs.Glob(source, "*.go")
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := source.Open(name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s\n", name)
		if _, err := io.Copy(h, f); err != nil {
			return "", err
		}
	}
	fmt.Fprintf(h, "%s\n", r.Name)
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}

// lock waits for the file's lock, which ends with the process at the latest.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", path, err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}
