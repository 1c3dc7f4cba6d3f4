package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	lazy "github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/image/estargz"
	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
	"github.com/ipfs-stargz/ipfs-stargz/image/progress"
)

// zstdChunkedPrefix begins the annotations by which zstd:chunked layers are read
// (github.com/containers/storage).
const zstdChunkedPrefix = "io.github.containers.zstd-chunked."

// future is a layer that someone converts, for all that have it.
type future struct {
	done  chan struct{}
	layer layer
	err   error
}

// layer is what became of a layer of the source. For one that is kept as it is
// all but mediaType is as before; of its Digests TOC is known, if it is lazy.
type layer struct {
	estargz.Digests // DiffID is "" if it did not change
	mediaType       string
	digest          digest.Digest
	size            int64
	from            content.Provider
}

// layer converts and stores the layer of desc. The diff ID is "" if it did
// not change.
func (r *run) layer(ctx context.Context, desc ocispec.Descriptor) (*ocispec.Descriptor, digest.Digest, error) {
	if images.IsNonDistributable(desc.MediaType) {
		return nil, "", fmt.Errorf("layer %s has the media type %s: it may not be passed on, so it is not put into IPFS; choose other platforms with --platform: %w",
			desc.Digest, desc.MediaType, ErrNonDistributable)
	}
	l, err := r.once(ctx, desc)
	if err != nil {
		return nil, "", err
	}
	made := desc
	made.MediaType, made.Digest, made.Size = l.mediaType, l.digest, l.size
	if made.Digest != desc.Digest {
		made.Data = nil
	}
	stored, err := r.store(ctx, made, l.from, nil)
	if err != nil {
		return nil, "", err
	}
	annotations := maps.Clone(desc.Annotations)
	if annotations == nil {
		annotations = make(map[string]string)
	}
	if made.Digest != desc.Digest {
		// Where the table of contents was in the old blob.
		maps.DeleteFunc(annotations, func(k, _ string) bool { return strings.HasPrefix(k, zstdChunkedPrefix) })
	}
	root, err := oci.CID(*stored)
	if err != nil {
		return nil, "", err
	}
	annotations[oci.AnnotationCID] = root.String()
	if l.TOC != "" {
		annotations[oci.AnnotationTOCDigest] = l.TOC.String()
	}
	if l.UncompressedSize > 0 {
		annotations[oci.AnnotationUncompressedSize] = strconv.FormatInt(l.UncompressedSize, 10)
	}
	stored.Annotations = annotations
	return stored, l.DiffID, nil
}

// once converts the layer of desc, or waits for who does so already.
func (r *run) once(ctx context.Context, desc ocispec.Descriptor) (layer, error) {
	r.mu.Lock()
	f := r.layers[desc.Digest]
	mine := f == nil
	if mine {
		f = &future{done: make(chan struct{})}
		r.layers[desc.Digest] = f
	}
	r.mu.Unlock()
	if mine {
		f.layer, f.err = r.convertLayer(ctx, desc)
		close(f.done)
	}
	select {
	case <-f.done:
		return f.layer, f.err
	case <-ctx.Done():
		return layer{}, ctx.Err()
	}
}

// convertLayer decides what becomes of a layer, and converts it if need be.
func (r *run) convertLayer(ctx context.Context, desc ocispec.Descriptor) (layer, error) {
	if err := r.slots.Acquire(ctx, 1); err != nil {
		return layer{}, err
	}
	defer r.slots.Release(1)
	ra, err := open(ctx, r.Source, desc)
	if err != nil {
		return layer{}, err
	}
	defer ra.Close()

	kept := layer{
		mediaType: converter.ConvertDockerMediaTypeToOCI(desc.MediaType),
		digest:    desc.Digest, size: desc.Size, from: r.Source,
	}
	if strings.HasSuffix(desc.MediaType, "+encrypted") {
		r.plain(desc, "it is encrypted")
		return kept, nil
	}
	task := r.Progress.Task("convert "+short(desc.Digest), desc.Size)
	made, result, err := r.tryConvert(ctx, desc, ra, kept, task)
	if err != nil {
		result = "failed"
	}
	task.Done(result)
	return made, err
}

// tryConvert verifies the layer's bytes, then converts them unless they are
// lazy already, and need no other order, or cannot be converted. The words tell
// which.
func (r *run) tryConvert(ctx context.Context, desc ocispec.Descriptor, ra content.ReaderAt, kept layer, task progress.Task) (layer, string, error) {
	if err := verify(ctx, desc, ra); err != nil {
		return layer{}, "", err
	}
	first, anew := r.First[desc.Digest]
	format, toc, err := estargz.IsStargz(ctx, source{ra})
	switch {
	case err == nil && anew:
		kept.TOC = toc
	case err == nil:
		if was := desc.Annotations[oci.AnnotationTOCDigest]; was != "" && was != toc.String() {
			r.warn(fmt.Sprintf("layer %s: its annotation %s was %.100q, it is set to %s", desc.Digest, oci.AnnotationTOCDigest, was, toc))
		}
		kept.TOC = toc
		r.count(&r.result.Kept)
		return kept, "kept, " + format.String() + " already", nil
	case errors.Is(err, lazy.ErrNotStargz):
	case isUnfit(err):
		// The tar in it may be sound.
		r.warn(fmt.Sprintf("layer %s is meant to be lazy, but it cannot be (%v); it is converted anew", desc.Digest, err))
	default:
		return layer{}, "", fmt.Errorf("layer %s: %w", desc.Digest, err)
	}
	made, err := r.write(ctx, desc, ra, first, task)
	if err != nil {
		if ctx.Err() != nil || isEnvironment(err) {
			return layer{}, "", fmt.Errorf("convert layer %s: %w", desc.Digest, err)
		}
		if kept.TOC != "" {
			r.warn(fmt.Sprintf("layer %s stays lazy in the order that it has, not with what is read first in front: %v", desc.Digest, err))
			r.count(&r.result.Kept)
			return kept, "kept as it is", nil
		}
		r.plain(desc, err.Error())
		return kept, "kept as it is", nil
	}
	r.count(&r.result.Converted)
	return made, "converted to eStargz", nil
}

// verify reads the layer through once, so that nothing is built on bytes that
// are not those of its digest.
func verify(ctx context.Context, desc ocispec.Descriptor, ra content.ReaderAt) error {
	verifier := desc.Digest.Verifier()
	const step = 4 << 20 // bytes between two looks at ctx
	for off := int64(0); off < desc.Size; off += step {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := io.Copy(verifier, io.NewSectionReader(ra, off, min(step, desc.Size-off))); err != nil {
			return fmt.Errorf("read layer %s: %w", desc.Digest, err)
		}
	}
	if !verifier.Verified() {
		return fmt.Errorf("layer %s: its bytes have another digest: %w", desc.Digest, oci.ErrInvalid)
	}
	return nil
}

// write converts the layer into the job's directory. Of the conversion only what
// it reads can be seen from here; the rest of its time is compression.
func (r *run) write(ctx context.Context, desc ocispec.Descriptor, ra content.ReaderAt, first []string, task progress.Task) (layer, error) {
	w, err := r.work().create()
	if err != nil {
		return layer{}, err
	}
	defer w.discard()
	info, err := r.Layer(ctx, io.NewSectionReader(watched{ra, task}, 0, desc.Size), w, first)
	if err != nil {
		return layer{}, err
	}
	sum, err := w.commit()
	if err != nil {
		return layer{}, err
	}
	return layer{
		Digests:   info,
		mediaType: ocispec.MediaTypeImageLayerGzip,
		digest:    sum, size: w.size, from: r.work(),
	}, nil
}

// watched counts what is read towards a task.
type watched struct {
	io.ReaderAt
	task progress.Task
}

func (w watched) ReadAt(p []byte, off int64) (int, error) {
	n, err := w.ReaderAt.ReadAt(p, off)
	w.task.Add(int64(n))
	return n, err
}

// source is a layer's blob as package estargz reads it.
type source struct{ content.ReaderAt }

func (s source) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return s.ReaderAt.ReadAt(p, off)
}

// isUnfit tells whether err says of a layer that it has a table of contents, but
// none to mount it by.
func isUnfit(err error) bool {
	for _, unfit := range []error{lazy.ErrInvalid, lazy.ErrLimit, lazy.ErrNotLazy} {
		if errors.Is(err, unfit) {
			return true
		}
	}
	return false
}

// isEnvironment tells whether err is this machine's trouble (disk full, no
// permission, a connection lost), not the layer's.
func isEnvironment(err error) bool {
	var path *fs.PathError
	var errno syscall.Errno
	return errors.As(err, &path) || errors.As(err, &errno) || errdefs.IsUnavailable(err)
}

// plain warns that a layer will be unpacked in full wherever the image runs.
func (r *run) plain(desc ocispec.Descriptor, why string) {
	r.warn(fmt.Sprintf("layer %s (%s) is pushed as it is and will not be lazy: %s", desc.Digest, desc.MediaType, why))
	r.count(&r.result.Plain)
}

func (r *run) warn(message string) {
	r.Progress.Warn(message)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.result.Warnings = append(r.result.Warnings, message)
}

func (r *run) count(n *int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	*n++
}
