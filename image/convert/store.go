package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	lazy "github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/image/estargz"
	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
	"github.com/ipfs-stargz/ipfs-stargz/image/progress"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
)

// store puts the blob of desc, which from has, into IPFS, once for each digest,
// and returns desc with its CID as URL.
func (r *run) store(ctx context.Context, desc ocispec.Descriptor, from content.Provider, children []ocispec.Descriptor) (*ocispec.Descriptor, error) {
	r.mu.Lock()
	b := r.blobs[desc.Digest]
	if b == nil {
		b = &blob{children: children}
		r.blobs[desc.Digest] = b
	}
	r.mu.Unlock()
	b.once.Do(func() { b.err = r.put(ctx, desc, from, b) })
	if b.err != nil {
		return nil, b.err
	}
	// Other ipfs:// URLs would be of other CIDs, perhaps of another push.
	desc.URLs = append([]string{oci.URL(b.cid)}, slices.DeleteFunc(slices.Clone(desc.URLs), func(u string) bool {
		return strings.HasPrefix(u, "ipfs://")
	})...)
	return &desc, nil
}

// put hands the bytes of desc over, and verifies them on the way.
func (r *run) put(ctx context.Context, desc ocispec.Descriptor, from content.Provider, b *blob) error {
	if err := r.slots.Acquire(ctx, 1); err != nil {
		return err
	}
	defer r.slots.Release(1)
	ra, err := open(ctx, from, desc)
	if err != nil {
		return err
	}
	defer ra.Close()
	task := r.Progress.Task("store "+short(desc.Digest), desc.Size)
	verifier := desc.Digest.Verifier()
	in := progress.Reader(io.TeeReader(io.NewSectionReader(ra, 0, desc.Size), verifier), task)
	cuts, err := cutsOf(ctx, desc, ra)
	if err == nil {
		b.cid, err = r.Store(ctx, Blob{Descriptor: desc, Reader: in, Cuts: cuts})
	}
	if err == nil && !verifier.Verified() {
		err = fmt.Errorf("%s %s: its bytes have another digest: %w", desc.MediaType, desc.Digest, oci.ErrInvalid)
	}
	if err != nil {
		task.Done("failed")
		return err
	}
	task.Done(b.cid.String())
	return nil
}

// cutsOf returns where the blob of desc may be cut into blocks, none if it is
// no lazy layer.
func cutsOf(ctx context.Context, desc ocispec.Descriptor, ra content.ReaderAt) ([]importer.Cut, error) {
	if oci.KindOf(desc.MediaType) != oci.Layer {
		return nil, nil
	}
	cuts, err := estargz.Cuts(ctx, source{ra})
	if errors.Is(err, lazy.ErrNotStargz) || isUnfit(err) {
		return nil, nil
	}
	return cuts, err
}

// list notes the blobs of the result from desc down, children first.
func (r *run) list(desc ocispec.Descriptor, listed map[digest.Digest]bool) {
	if listed[desc.Digest] {
		return
	}
	listed[desc.Digest] = true
	b := r.blobs[desc.Digest]
	for _, c := range b.children {
		r.list(c, listed)
	}
	r.result.Blobs = append(r.result.Blobs, desc)
	r.result.CIDs = append(r.result.CIDs, b.cid)
}

// short is the beginning of a digest, enough for a person to tell it by.
func short(d digest.Digest) string {
	const shown = 12
	return d.Encoded()[:shown]
}

func (j Job) work() work { return work{j.Dir} }

// Provider has the blobs of the result of a job, until its Dir is removed.
func (j Job) Provider() content.Provider { return results{j} }

type results struct{ job Job }

func (p results) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	ra, err := p.job.work().ReaderAt(ctx, desc)
	if errdefs.IsNotFound(err) {
		return p.job.Source.ReaderAt(ctx, desc)
	}
	return ra, err
}
