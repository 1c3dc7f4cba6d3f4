package fusetree

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/fs/tree"
)

// Each benchmark does the same on several file systems in turn, and prints how
// fast they are as parts of the first one's speed: times alone say nothing on a
// machine that does other things.

// inTurn runs work on each file system once per iteration.
func inTurn(b *testing.B, names []string, work func(i int)) {
	times := make([]time.Duration, len(names))
	for i := range names {
		work(i) // warm
	}
	for b.Loop() {
		for i := range names {
			start := time.Now()
			work(i)
			times[i] += time.Since(start)
		}
	}
	for i, name := range names[1:] {
		b.ReportMetric(float64(times[0])/float64(times[i+1]), name+"/"+names[0])
	}
}

// readAll opens, reads and closes files.
func readAll(b *testing.B, paths []string, buf []byte) {
	for _, p := range paths {
		fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			b.Fatal(err)
		}
		for {
			n, err := unix.Read(fd, buf)
			if err != nil {
				b.Fatal(err)
			}
			if n == 0 {
				break
			}
		}
		unix.Close(fd)
	}
}

// BenchmarkSmallFiles opens, reads and closes files that are in the page cache.
func BenchmarkSmallFiles(b *testing.B) {
	for _, size := range []int{4 << 10, 32 << 10, 100 << 10} {
		b.Run(fmt.Sprint(size>>10, "KiB"), func(b *testing.B) {
			var files []file
			for i := range 2000 {
				files = append(files, reg(fmt.Sprintf("f%d", i), random(byte(i), size)))
			}
			asked, unasked := newMount(b, files, passthrough()), newMount(b, files, Config{})
			native, loop := mkdir(b, filepath.Join(asked.root, "native")), mkdir(b, filepath.Join(asked.root, "loop"))
			for _, f := range files {
				if err := os.WriteFile(filepath.Join(native, f.Name), f.content, 0o644); err != nil {
					b.Fatal(err)
				}
			}
			asked.store.completeAll(b)
			mountLoopback(b, native, loop)
			dirs := []string{native, asked.cfg.Dir, unasked.cfg.Dir, loop}
			paths := make([][]string, len(dirs))
			for i, dir := range dirs {
				for _, f := range files {
					paths[i] = append(paths[i], filepath.Join(dir, f.Name))
				}
			}
			buf := make([]byte, 128<<10)
			inTurn(b, []string{"native", "fusetree", "no-open", "loopback"}, func(i int) { readAll(b, paths[i], buf) })
		})
	}
}

// BenchmarkOverlay does the same through an overlay, as a container does: over a
// native directory, over the kernel's mount of the image and the objects, and over
// ours.
func BenchmarkOverlay(b *testing.B) {
	var files []file
	for i := range 2000 {
		files = append(files, reg(fmt.Sprintf("d%d/f%d", i%20, i), random(byte(i), 4<<10)))
	}
	var paths [3][]string
	for i := range paths {
		m := newMount(b, files, passthrough())
		m.store.completeAll(b)
		lower := m.cfg.Dir
		switch i {
		case 0:
			lower = mkdir(b, filepath.Join(m.root, "native"))
			for _, f := range files {
				p := filepath.Join(lower, f.Name)
				if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
					b.Fatal(err)
				}
				if err := os.WriteFile(p, f.content, 0o644); err != nil {
					b.Fatal(err)
				}
			}
		case 1:
			lower = mkdir(b, filepath.Join(m.root, "kernel"))
			mountUntilEnd(b, m.image, lower, "erofs", unix.MS_RDONLY, "")
			lower += "::" + m.store.dir
		}
		over := m.overlay(b, lower)
		for _, f := range files {
			paths[i] = append(paths[i], filepath.Join(over, f.Name))
		}
	}
	buf := make([]byte, 128<<10)
	inTurn(b, []string{"native", "kernel", "fusetree"}, func(i int) { readAll(b, paths[i], buf) })
}

// mountLoopback serves a directory as go-fuse's own example does.
func mountLoopback(b *testing.B, dir, target string) {
	b.Helper()
	root, err := gofs.NewLoopbackRoot(dir)
	if err != nil {
		b.Fatal(err)
	}
	second := time.Second
	server, err := gofs.Mount(target, root, &gofs.Options{
		AttrTimeout: &second, EntryTimeout: &second, NullPermissions: true,
		MountOptions: fuse.MountOptions{AllowOther: true, DirectMountStrict: true, Name: "loopback"},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			b.Error(err)
		}
	})
}

// BenchmarkWarmReads reads a large file that is in the page cache.
func BenchmarkWarmReads(b *testing.B) {
	const size = 64 << 20
	files := []file{reg("f", random(1, size))}
	asked, unasked := newMount(b, files, passthrough()), newMount(b, files, Config{})
	asked.store.completeAll(b)
	unasked.store.completeAll(b)
	paths := []string{filepath.Join(asked.store.dir, files[0].Key.String()), asked.path("f"), unasked.path("f")}
	names := []string{"native", "fusetree", "no-open"}
	b.Run("sequential", func(b *testing.B) {
		buf := make([]byte, 1<<20)
		inTurn(b, names, func(i int) { readAll(b, paths[i:i+1], buf) })
	})
	b.Run("random", func(b *testing.B) {
		buf := make([]byte, 4096)
		rng := rand.New(rand.NewPCG(1, 1))
		fds := make([]int, len(paths))
		for i, p := range paths {
			fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				b.Fatal(err)
			}
			defer unix.Close(fd)
			fds[i] = fd
		}
		inTurn(b, names, func(i int) {
			for range 10_000 {
				if _, err := unix.Pread(fds[i], buf, rng.Int64N(size-4096)); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}

// BenchmarkColdWalk lists and stats a tree that was just mounted, by the kernel
// and by us.
func BenchmarkColdWalk(b *testing.B) {
	const dirs, names = 200, 100
	var files []file
	for i := range dirs {
		for j := range names {
			files = append(files, reg(fmt.Sprintf("d%d/file-with-a-name-%d", i, j), []byte{1}))
		}
	}
	root := tempDir(b)
	image, kernel := filepath.Join(root, "image"), mkdir(b, filepath.Join(root, "kernel"))
	buildImage(b, image, files, tree.Options{})
	var ours, theirs time.Duration
	for b.Loop() {
		b.StopTimer()
		m := newMount(b, files, passthrough())
		if err := unix.Mount(image, kernel, "erofs", unix.MS_RDONLY, ""); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		start := time.Now()
		walkAll(b, m.cfg.Dir)
		ours += time.Since(start)
		start = time.Now()
		walkAll(b, kernel)
		theirs += time.Since(start)
		b.StopTimer()
		if err := unix.Unmount(kernel, 0); err != nil {
			b.Fatal(err)
		}
		m.close(b)
		b.StartTimer()
	}
	b.ReportMetric(float64(theirs)/float64(ours), "fusetree/kernel")
	b.ReportMetric(float64(ours)/float64(b.N)/(dirs*names), "ns/name")
}

func walkAll(b *testing.B, root string) {
	n := 0
	err := filepath.WalkDir(root, func(p string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			n++
			var st unix.Stat_t
			err = unix.Lstat(p, &st)
		}
		return err
	})
	if err != nil || n == 0 {
		b.Fatal(n, err)
	}
}
