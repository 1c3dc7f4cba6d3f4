package layout

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// WriteArchive writes the image root with its blobs, root's own among them, as
// an OCI archive to path, which appears complete or not at all. The archive
// depends on nothing but the arguments: the same image gives the same bytes.
// Blobs of equal digest are written once. A name that is not "" is recorded so
// that skopeo and containerd find the image by it.
func WriteArchive(ctx context.Context, path string, root ocispec.Descriptor, name string, blobs []ocispec.Descriptor, from content.Provider) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	buf := bufio.NewWriterSize(f, 1<<20)
	tw := tar.NewWriter(buf)
	if err := writeLayout(ctx, tw, root, name, blobs, from); err != nil {
		return err
	}
	if err := tw.Close(); err != nil {
		return err
	}
	if err := buf.Flush(); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func writeLayout(ctx context.Context, tw *tar.Writer, root ocispec.Descriptor, name string, blobs []ocispec.Descriptor, from content.Provider) error {
	if err := writeJSON(tw, ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}); err != nil {
		return err
	}
	written := make(map[digest.Digest]bool)
	for _, b := range blobs {
		if written[b.Digest] {
			continue
		}
		written[b.Digest] = true
		if err := writeBlob(ctx, tw, b, from); err != nil {
			return fmt.Errorf("blob %s: %w", b.Digest, err)
		}
	}
	if name != "" {
		annotations := map[string]string{
			ocispec.AnnotationRefName:  name,
			images.AnnotationImageName: name,
		}
		for k, v := range root.Annotations {
			annotations[k] = v
		}
		root.Annotations = annotations
	}
	return writeJSON(tw, ocispec.ImageIndexFile, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{root},
	})
}

func writeJSON(tw *tar.Writer, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := tw.WriteHeader(header(name, int64(len(data)))); err != nil {
		return err
	}
	_, err = tw.Write(data)
	return err
}

func writeBlob(ctx context.Context, tw *tar.Writer, desc ocispec.Descriptor, from content.Provider) error {
	ra, err := from.ReaderAt(ctx, desc)
	if err != nil {
		return err
	}
	defer ra.Close()
	if err := tw.WriteHeader(header(blobName(desc.Digest), desc.Size)); err != nil {
		return err
	}
	for off := int64(0); off < desc.Size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		const step = 16 << 20 // bytes between two looks at ctx
		n, err := io.Copy(tw, io.NewSectionReader(ra, off, min(step, desc.Size-off)))
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		off += n
	}
	return nil
}

// header has no time and no owner, so that nothing of when and where the
// archive was written is in it.
func header(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o444}
}
