package image

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ipfs-stargz/ipfs-stargz/image/layout"
)

// Prefixes that say where an image is; the first two are skopeo's. Without one,
// it is in a file or directory if there is one of that path, else in
// containerd.
const (
	prefixArchive    = "oci-archive:"
	prefixLayout     = "oci:"
	prefixContainerd = "containerd:"
)

// source is an image to push.
type source struct {
	name       string // to record in an archive; may be ""
	root       ocispec.Descriptor
	blobs      content.Provider
	containerd *containerd.Client // that has the image; nil if it is in a layout
	io.Closer
}

// openSource finds the image that the user named. The context returned is to
// be used for its blobs.
func openSource(ctx context.Context, image string, at Containerd) (context.Context, *source, error) {
	if path, ok := cutAny(image, prefixArchive, prefixLayout); ok {
		s, err := openLayout(path)
		return ctx, s, err
	}
	if name, ok := strings.CutPrefix(image, prefixContainerd); ok {
		return openContainerd(ctx, name, at)
	}
	if path, _ := splitLayout(image); path != "" {
		s, err := openLayout(image)
		return ctx, s, err
	}
	return openContainerd(ctx, image, at)
}

func cutAny(s string, prefixes ...string) (string, bool) {
	for _, p := range prefixes {
		if rest, ok := strings.CutPrefix(s, p); ok {
			return rest, true
		}
	}
	return s, false
}

// splitLayout cuts PATH or PATH:NAME. The path is "" if there is nothing of that
// path.
func splitLayout(arg string) (path, name string) {
	if _, err := os.Stat(arg); err == nil {
		return arg, ""
	}
	path, name, _ = strings.Cut(arg, ":")
	if _, err := os.Stat(path); err == nil {
		return path, name
	}
	return "", ""
}

// openLayout opens the image at PATH or PATH:NAME.
func openLayout(arg string) (*source, error) {
	path, name := splitLayout(arg)
	if path == "" {
		path = arg // for the error
	}
	l, err := layout.Open(path)
	if err != nil {
		return nil, err
	}
	root, err := l.Image(name)
	if err != nil {
		l.Close()
		return nil, err
	}
	return &source{name: root.Annotations[ocispec.AnnotationRefName], root: root, blobs: l, Closer: l}, nil
}

// openContainerd finds an image of containerd's by its full name, or by the
// short form that docker understands ("alpine").
func openContainerd(ctx context.Context, name string, at Containerd) (context.Context, *source, error) {
	ctx, client, err := at.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	img, err := client.ImageService().Get(ctx, name)
	if errdefs.IsNotFound(err) {
		if full, parseErr := reference.ParseDockerRef(name); parseErr == nil && full.String() != name {
			img, err = client.ImageService().Get(ctx, full.String())
		}
	}
	if err != nil {
		defer client.Close()
		if errdefs.IsNotFound(err) {
			return nil, nil, notInStore(ctx, client, name, err)
		}
		return nil, nil, fmt.Errorf("image %q: %w", name, err)
	}
	return ctx, &source{name: img.Name, root: img.Target, blobs: client.ContentStore(), containerd: client, Closer: client}, nil
}

// notInStore says what is there instead of the image called name.
func notInStore(ctx context.Context, client *containerd.Client, name string, err error) error {
	hint := "see `ctr namespaces ls` and `ctr -n NAMESPACE images ls`"
	if all, listErr := client.NamespaceService().List(ctx); listErr == nil && len(all) > 0 {
		hint = fmt.Sprintf("containerd has the namespaces %s; see `ctr -n NAMESPACE images ls`", strings.Join(all, ", "))
	}
	return fmt.Errorf("there is no file %q, and no such image in containerd (%w); %s", name, err, hint)
}
