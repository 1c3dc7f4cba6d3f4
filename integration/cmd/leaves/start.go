package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/image"
)

// pieceSize is the granularity with which is recorded what was read, in bytes.
const pieceSize = 64 << 10

// reads are the pieces that were read of each file, by its name in the image.
type reads map[string][]int64

// touches tells whether any of the size bytes at off of the file was read.
func (r reads) touches(name string, off, size int64) bool {
	for _, p := range r[name] {
		if p*pieceSize < off+size && off < (p+1)*pieceSize {
			return true
		}
	}
	return false
}

// record unpacks the image below dir, runs it with a cold page cache and
// returns what the kernel read of its files. That includes what it reads ahead,
// as it does through FUSE.
func record(ctx context.Context, im *image.Image, dir string) (reads, error) {
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, err
	}
	for _, l := range im.Layers {
		if err := unpack(ctx, im.Blob(l), root); err != nil {
			return nil, err
		}
	}
	unix.Sync()
	err := eachFile(root, func(_ string, f *os.File, _ int64) error {
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "/usr/bin/python3", "/app/main.py")
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin", "PYTHONDONTWRITEBYTECODE=1"}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "numpy ") {
		return nil, fmt.Errorf("run the image: %w: %s", err, out)
	}
	r := reads{}
	err = eachFile(root, func(name string, f *os.File, size int64) error {
		for p := int64(0); p*pieceSize < size; p++ {
			var stat unix.Cachestat_t
			if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Off: uint64(p * pieceSize), Len: pieceSize}, &stat, 0); err != nil {
				return fmt.Errorf("cachestat %s: %w", name, err)
			}
			if stat.Cache > 0 {
				r[name] = append(r[name], p)
			}
		}
		return nil
	})
	return r, err
}

func unpack(ctx context.Context, blob, root string) error {
	f, err := os.Open(blob)
	if err != nil {
		return err
	}
	defer f.Close()
	plain, err := compression.DecompressStream(bufio.NewReader(f))
	if err != nil {
		return err
	}
	defer plain.Close()
	_, err = archive.Apply(ctx, root, plain)
	return err
}

// eachFile calls fn for every regular file below root that is not empty.
func eachFile(root string, fn func(name string, f *os.File, size int64) error) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil || info.Size() == 0 {
			return err
		}
		name, err := filepath.Rel(root, path)
		return errors.Join(err, fn(name, f, info.Size()))
	})
}
