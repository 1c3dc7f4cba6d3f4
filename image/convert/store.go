package convert

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
	"github.com/ipfs-stargz/ipfs-stargz/image/progress"
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
		return len(u) >= 7 && u[:7] == "ipfs://"
	})...)
	return &desc, nil
}

// put hands the bytes of desc over, and verifies them on the way.
func (r *run) put(ctx context.Context, desc ocispec.Descriptor, from content.Provider, b *blob) error {
	ra, err := open(ctx, from, desc)
	if err != nil {
		return err
	}
	defer ra.Close()
	task := r.Progress.Task("store "+short(desc.Digest), desc.Size)
	verifier := desc.Digest.Verifier()
	in := progress.Reader(io.TeeReader(io.NewSectionReader(ra, 0, desc.Size), verifier), task)
	b.cid, err = r.Store(ctx, desc, in)
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

// list notes the blobs of the result below desc, children first.
func (r *run) list(desc ocispec.Descriptor) {
	if slices.ContainsFunc(r.result.Blobs, func(d ocispec.Descriptor) bool { return d.Digest == desc.Digest }) {
		return
	}
	b := r.blobs[desc.Digest]
	for _, c := range b.children {
		r.list(c)
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
