package fs_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"

	"github.com/ipfs-stargz/ipfs-stargz/fs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/mounts"
)

// BenchmarkIdleMemory pulls and mounts 20 images of 100,000 names. anon-MB is the
// process's own memory then, as it is a minute later; file-MB that of mapped files,
// which the kernel can take back.
func BenchmarkIdleMemory(b *testing.B) {
	for b.Loop() {
		root, blobs := b.TempDir(), b.TempDir()
		f, err := fs.New(b.Context(), fs.Config{
			Root: root, Mode: mounts.ModeAuto, Log: slog.New(slog.DiscardHandler),
			Open: func(_ context.Context, cid string) (layer.Source, error) {
				return onDisk(filepath.Join(blobs, cid)), nil
			},
		})
		if err != nil {
			b.Fatal(err)
		}
		for i := range 20 {
			var s store
			image := s.makeImage(b, fmt.Sprint("image-", i), 10, 10_000)
			for cid, blob := range s.blobs {
				if err := os.WriteFile(filepath.Join(blobs, cid), blob, 0o600); err != nil {
					b.Fatal(err)
				}
			}
			image.pull(b, f)
			if _, err := f.Tree(b.Context(), fs.Run{CIDs: image.cids}); err != nil {
				b.Fatal(err)
			}
		}
		debug.FreeOSMemory()
		b.ReportMetric(rss(b, "RssAnon"), "anon-MB")
		b.ReportMetric(rss(b, "RssFile"), "file-MB")
		stop(b, f)
	}
}

// rss returns a line of the process's status, MB.
func rss(t testing.TB, field string) float64 {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := bytes.Cut(status, []byte("\n"+field+":"))
	var kib float64
	if _, err := fmt.Sscan(string(line), &kib); err != nil {
		t.Fatal(err)
	}
	return kib / 1024
}

// onDisk is a blob in a file.
type onDisk string

func (path onDisk) Size() int64 {
	fi, err := os.Stat(string(path))
	if err != nil {
		return 0
	}
	return fi.Size()
}

func (path onDisk) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	f, err := os.Open(string(path))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.ReadAt(p, off)
}
