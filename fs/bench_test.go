package fs_test

import (
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/fs"
)

// BenchmarkFirstMount mounts an image of 100,000 names in 10 layers whose tables
// of contents are here, by a process that has not read them yet ("tocs") and by
// the one that pulled them ("pulled"), beside decoding the same tables, from
// memory and decompressed, with encoding/json.
//
// ratio is the time of the one by that of the other, cpu-ratio the same of the
// processors' time, which other processes disturb less; again-ms is what it takes to
// mount the tree once more.
func BenchmarkFirstMount(b *testing.B) {
	var s store
	image := s.makeImage(b, "image", 10, 10_000)
	for _, restart := range []bool{true, false} {
		name := map[bool]string{true: "tocs", false: "pulled"}[restart]
		b.Run(name, func(b *testing.B) {
			var reference, mount, referenceCPU, mountCPU, again time.Duration
			for b.Loop() {
				b.StopTimer()
				begin, beginCPU := time.Now(), cpu(b)
				for _, text := range image.jsons {
					var toc estargz.JTOC
					if err := json.Unmarshal(text, &toc); err != nil {
						b.Fatal(err)
					}
				}
				reference += time.Since(begin)
				referenceCPU += cpu(b) - beginCPU

				root := b.TempDir()
				f := pulled(b, root, &s, image)
				if restart {
					if err := f.Close(); err != nil {
						b.Fatal(err)
					}
					f = startLogging(b, root, &s, io.Discard, slog.LevelError)
				}
				b.StartTimer()
				begin, beginCPU = time.Now(), cpu(b)
				if _, err := f.Tree(b.Context(), fs.Run{CIDs: image.cids}); err != nil {
					b.Fatal(err)
				}
				mount += time.Since(begin)
				mountCPU += cpu(b) - beginCPU
				b.StopTimer()
				if err := f.Retain(image.cids, nil); err != nil {
					b.Fatal(err)
				}
				begin = time.Now()
				if _, err := f.Tree(b.Context(), fs.Run{CIDs: image.cids}); err != nil {
					b.Fatal(err)
				}
				again += time.Since(begin)
				stop(b, f)
				if left, err := os.ReadDir(filepath.Join(root, "trees")); err != nil || len(left) > 0 {
					b.Fatal(left, err)
				}
				b.StartTimer()
			}
			b.ReportMetric(mount.Seconds()/reference.Seconds(), "ratio")
			b.ReportMetric(mountCPU.Seconds()/referenceCPU.Seconds(), "cpu-ratio")
			b.ReportMetric(again.Seconds()*1e3/float64(b.N), "again-ms")
		})
	}
}

// cpu is the time that processors spent on this process.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// pulled returns a file system that has all of an image's layers.
func pulled(t testing.TB, root string, s *store, image made) *fs.FS {
	t.Helper()
	f := startLogging(t, root, s, io.Discard, slog.LevelError)
	image.pull(t, f)
	return f
}
