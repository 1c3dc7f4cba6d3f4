package convert

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// work keeps the blobs that a job makes, as files in a directory, each under its
// SHA-256. Unlike containerd's store it syncs nothing: all of it is gone after
// the job.
type work struct{ dir string }

var _ content.Provider = work{}

func (w work) path(d digest.Digest) string { return filepath.Join(w.dir, d.Encoded()) }

// ReaderAt implements [content.Provider].
func (w work) ReaderAt(_ context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	f, err := os.Open(w.path(desc.Digest))
	if os.IsNotExist(err) {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return file{f, info}, nil
}

type file struct {
	*os.File
	info fs.FileInfo
}

func (f file) Size() int64 { return f.info.Size() }

// add keeps data.
func (w work) add(data []byte) (digest.Digest, error) {
	b, err := w.create()
	if err != nil {
		return "", err
	}
	defer b.discard()
	if _, err := io.Copy(b, bytes.NewReader(data)); err != nil {
		return "", err
	}
	return b.commit()
}

// create begins a blob. The caller writes it, ends with commit, and calls
// discard in any case.
func (w work) create() (*draft, error) {
	f, err := os.CreateTemp(w.dir, "draft-*")
	if err != nil {
		return nil, err
	}
	return &draft{work: w, f: f, hash: sha256.New()}, nil
}

// draft is a blob that is not complete.
type draft struct {
	work work
	f    *os.File
	hash hash.Hash
	size int64
}

func (d *draft) Write(p []byte) (int, error) {
	n, err := d.f.Write(p)
	d.hash.Write(p[:n])
	d.size += int64(n)
	return n, err
}

// commit keeps the blob under its digest.
func (d *draft) commit() (digest.Digest, error) {
	if err := d.f.Close(); err != nil {
		return "", err
	}
	sum := digest.NewDigest(digest.SHA256, d.hash)
	return sum, os.Rename(d.f.Name(), d.work.path(sum))
}

// discard removes what was not committed.
func (d *draft) discard() {
	d.f.Close()
	os.Remove(d.f.Name()) // after commit there is nothing of that name
}
