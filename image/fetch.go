package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// readRoot gets and checks the root descriptor at c. Its blocks are verified: no
// digest stands above it.
func readRoot(ctx context.Context, d Reader, c cid.Cid) (ocispec.Descriptor, error) {
	data, err := readRootFile(ctx, d, c)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return oci.ParseRoot(data)
}

// readRootFile gets the bytes at c; the first of them, enough to say what they
// are, if there are too many for a root.
func readRootFile(ctx context.Context, d Reader, c cid.Cid) ([]byte, error) {
	f, err := ipfs.OpenFile(ctx, d, "", c, oci.MaxRootBytes)
	switch {
	case errors.Is(err, ipfs.ErrTooLarge):
		rc, err := d.Cat(ctx, c.String(), 0, oci.MaxRootBytes+1)
		if err != nil {
			return nil, err
		}
		defer rc.Close()
		return io.ReadAll(io.LimitReader(rc, oci.MaxRootBytes+1))
	case errors.Is(err, ipfs.ErrNotFile), errors.Is(err, ipfs.ErrMalformed):
		return nil, fmt.Errorf("%w: %w", err, oci.ErrNotRoot)
	case err != nil:
		return nil, err
	}
	data := make([]byte, f.Size())
	if _, err := f.ReadAt(ctx, data, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return data, nil
}

// fetcher reads blobs by the CIDs in their descriptors. Whoever reads verifies
// them against their digests.
type fetcher struct{ daemon Reader }

// Fetch implements [remotes.Fetcher].
func (f fetcher) Fetch(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	return f.open(ctx, desc)
}

func (f fetcher) open(ctx context.Context, desc ocispec.Descriptor) (*blobReader, error) {
	c, err := oci.CID(desc)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", desc.MediaType, desc.Digest, err)
	}
	return &blobReader{ctx: ctx, daemon: f.daemon, desc: desc, path: c.String()}, nil
}

// blobReader reads a blob from an offset on, so that a fetch that was
// interrupted goes on where it was.
type blobReader struct {
	ctx    context.Context
	daemon Reader
	desc   ocispec.Descriptor
	path   string
	offset int64
	body   io.ReadCloser
}

func (r *blobReader) Read(p []byte) (int, error) {
	if r.body == nil {
		body, err := r.daemon.Cat(r.ctx, r.path, r.offset, -1)
		if err != nil {
			return 0, fmt.Errorf("fetch %s %s: %w", r.desc.MediaType, r.desc.Digest, err)
		}
		r.body = body
	}
	n, err := r.body.Read(p)
	r.offset += int64(n)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("fetch %s %s: %w", r.desc.MediaType, r.desc.Digest, err)
	}
	return n, err
}

// Seek implements [io.Seeker]. The next Read asks for the bytes anew.
func (r *blobReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.offset
	case io.SeekEnd:
		offset += r.desc.Size
	}
	if offset < 0 {
		return 0, errors.New("seek before the beginning")
	}
	if offset == r.offset {
		return offset, nil
	}
	err := r.Close()
	r.offset = offset
	return offset, err
}

func (r *blobReader) Close() error {
	if r.body == nil {
		return nil
	}
	err := r.body.Close()
	r.body = nil
	return err
}
