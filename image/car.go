package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/car"
)

// SaveCAR writes everything that an image consists of to a file, for a site
// that no network reaches: a CAR of version 1 whose root is the image's. The
// file appears when it is whole. It returns the file's size in bytes.
func SaveCAR(ctx context.Context, blocks ipfs.Blocks, root cid.Cid, path string) (size int64, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("save %s to %s: %w", root, path, err)
		}
	}()
	all, err := Parts(ctx, blocks, root)
	if err != nil {
		return 0, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	err = car.Write(ctx, blocks, root, all, ipfs.Want{Bulk: true}, f)
	if err == nil {
		err = errors.Join(f.Chmod(0o644), f.Sync())
	}
	if err == nil {
		size, err = f.Seek(0, io.SeekEnd)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, err
	}
	return size, os.Rename(f.Name(), path)
}

// LoadCAR gives the daemon what is in the CAR file at path, and has it pin the
// image that is its root, which is returned. Every block is verified. If the
// file is cut off or damaged, or does not hold all of the image, nothing is
// pinned, and the blocks that were read go again. want, unless it is
// [cid.Undef], is the image that must be in it.
func LoadCAR(ctx context.Context, d Daemon, path string, want cid.Cid) (root cid.Cid, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("load %s: %w", path, err)
		}
	}()
	f, err := os.Open(path)
	if err != nil {
		return cid.Undef, err
	}
	defer f.Close()
	r, err := car.NewReader(f)
	if err != nil {
		return cid.Undef, err
	}
	if len(r.Roots) != 1 {
		return cid.Undef, fmt.Errorf("%w: it names %d roots; want one, the image (as `ipfs-stargz push --car` writes it)", car.ErrBad, len(r.Roots))
	}
	root = r.Roots[0]
	if want.Defined() && want != root {
		return cid.Undef, fmt.Errorf("it holds %s, not %s", root, want)
	}
	err = d.ImportCAR(ctx, r.Roots, func(put ipfs.PutFunc) error {
		for {
			b, err := r.Next()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if err := ipfs.Verify(b.Cid(), b.RawData()); err != nil {
				return fmt.Errorf("%w: %w", car.ErrBad, err)
			}
			if err := put(ctx, b); err != nil {
				return err
			}
		}
	})
	if err != nil {
		return cid.Undef, err
	}
	if _, err := readRoot(ctx, d, root); err != nil {
		return cid.Undef, err
	}
	// Kubo does not know what an image consists of; our daemon has pinned it.
	all, err := Parts(ctx, d, root)
	if err != nil {
		return cid.Undef, err
	}
	return root, d.ImportCAR(ctx, all, func(ipfs.PutFunc) error { return nil })
}
