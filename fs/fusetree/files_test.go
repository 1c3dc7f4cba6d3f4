package fusetree

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

const bigSize = 3<<20 + 17

// TestRanges reads random ranges, of what is complete and what is not, with and
// without the kernel's own reading.
func TestRanges(t *testing.T) {
	files := []file{reg("complete", random(1, bigSize)), reg("missing", random(2, bigSize)), reg("small", random(3, 200_000)), reg("empty", nil)}
	for name, cfg := range map[string]Config{
		"passthrough": passthrough(), "plain": {}, "small whole": {Passthrough: 10, SmallSize: 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMount(t, files, cfg)
			if err := m.store.complete(files[0].Key); err != nil {
				t.Fatal(err)
			}
			rng := rand.New(rand.NewPCG(1, 2))
			for _, file := range files {
				f, err := os.Open(m.path(file.Name))
				if err != nil {
					t.Fatal(err)
				}
				size := len(file.content)
				for range 50 {
					off, n := rng.IntN(size+10), rng.IntN(1+rng.IntN(200_000))
					got := make([]byte, n)
					read, err := f.ReadAt(got, int64(off))
					want := file.content[min(off, size):min(off+n, size)]
					if !bytes.Equal(got[:read], want) || (err != nil) != (read < n) {
						t.Fatalf("%s: %d bytes from %d: %d, %v", file.Name, n, off, read, err)
					}
				}
				if err := f.Close(); err != nil {
					t.Error(err)
				}
				mustRead(t, m.path(file.Name), file.content)
			}
		})
	}
}

// TestWhoReads checks when a file is read by the kernel itself.
func TestWhoReads(t *testing.T) {
	big, small := random(1, bigSize), random(2, 100)
	m := newMount(t, []file{reg("big", big), reg("small", small)}, passthrough())
	read := func(want int64) {
		t.Helper()
		before := m.stats.Passthrough.Load()
		mustRead(t, m.path("big"), big)
		if n := m.stats.Passthrough.Load() - before; n != want {
			t.Errorf("%d opens of %d are passthrough", n, want)
		}
	}
	read(0)
	// It becomes complete while it is open: until it is released it goes on as it
	// was, also for who opens it meanwhile.
	held, err := os.Open(m.path("big"))
	if err != nil {
		t.Fatal(err)
	}
	m.store.completeAll(t)
	read(0)
	if err := held.Close(); err != nil {
		t.Error(err)
	}
	// The kernel tells of a release when it comes to it.
	eventually(t, "the last release", func() bool {
		before := m.stats.Passthrough.Load()
		mustRead(t, m.path("big"), big)
		return m.stats.Passthrough.Load() > before
	})
	eventually(t, "the file's release", func() bool { return m.pool.Registered() == 0 })
	reads := m.store.reads.Load()
	read(1)
	if m.store.reads.Load() != reads {
		t.Error("what the kernel reads is read here, too")
	}
	mustRead(t, m.path("small"), small)
	mustRead(t, m.path("small"), small)
	if n := m.store.reads.Load() - reads; n != 1 {
		t.Errorf("a small file was read %d times", n)
	}
}

// TestHardLinksShare checks that two names of an inode have one backing file.
func TestHardLinksShare(t *testing.T) {
	big := random(1, bigSize)
	link := reg("two", nil)
	link.Entry = someOfAll(false, 0)[4].Entry
	link.Name, link.LinkName = "two", "one"
	m := newMount(t, []file{reg("one", big), link}, passthrough())
	m.store.completeAll(t)
	for _, name := range []string{"one", "two"} {
		f, err := os.Open(m.path(name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		mustRead(t, m.path("one"), big)
		mustRead(t, m.path("two"), big)
	}
	if n := m.pool.Registered(); n != 1 {
		t.Errorf("%d files registered", n)
	}
}

// TestSmallWhole checks that a small file is fetched at its first open, and
// already then read by the kernel; and that one that cannot be is opened all the
// same.
func TestSmallWhole(t *testing.T) {
	small, lost := random(1, 200_000), random(2, 200_000)
	m := newMount(t, []file{reg("small", small), reg("lost", lost)}, Config{Passthrough: 10, SmallSize: 200_000})
	mustRead(t, m.path("small"), small)
	if loads, reads, backed := m.store.loads.Load(), m.store.reads.Load(), m.stats.Passthrough.Load(); loads != 1 || reads != 0 || backed != 1 {
		t.Errorf("%d loads, %d reads, %d passthrough", loads, reads, backed)
	}
	m.store.mu.Lock()
	m.store.err = unix.ENOSPC
	m.store.mu.Unlock()
	f, err := os.Open(m.path("lost"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Read(make([]byte, 10)); err == nil || !strings.Contains(err.Error(), "input/output") {
		t.Error(err)
	}
	m.store.mu.Lock()
	m.store.err = nil
	m.store.mu.Unlock()
	mustRead(t, m.path("lost"), lost) // it works again as soon as it can
}

// TestFalseSize checks that an object of another size than the image says is not
// given to the kernel.
func TestFalseSize(t *testing.T) {
	big := random(1, bigSize)
	m := newMount(t, []file{reg("big", big)}, passthrough())
	m.store.data[sha256.Sum256(big)] = append(bytes.Clone(big), 1)
	m.store.completeAll(t)
	mustRead(t, m.path("big"), big)
	if n := m.stats.Passthrough.Load(); n != 0 {
		t.Errorf("%d opens are passthrough", n)
	}
}

// TestBound has more files open than the kernel may be given.
func TestBound(t *testing.T) {
	var files []file
	for i := range 12 {
		files = append(files, reg(fmt.Sprint("f", i), random(byte(i), 200_000)))
	}
	m := newMount(t, files, Config{Passthrough: 5})
	m.store.completeAll(t)
	for _, file := range files {
		f, err := os.Open(m.path(file.Name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		mustRead(t, m.path(file.Name), file.content)
	}
	if n := m.pool.Registered(); n != 5 {
		t.Errorf("%d files registered, want 5", n)
	}
}

// TestNothingToDecide checks that without passthrough the kernel does not even ask
// when it opens a file.
func TestNothingToDecide(t *testing.T) {
	big := random(1, bigSize)
	m := newMount(t, []file{reg("big", big)}, Config{})
	m.store.completeAll(t)
	for range 3 {
		mustRead(t, m.path("big"), big)
	}
	reads := m.store.reads.Load()
	mustRead(t, m.path("big"), big)
	if n := count(&m.stats.Opens); n != 0 || m.store.reads.Load() != reads {
		t.Errorf("%d opens, %d reads of what is in the page cache", n, m.store.reads.Load()-reads)
	}
}

// TestStackedCache has the cache on a file system that cannot be passed through:
// that is said once, and the kernel does not ask either.
func TestStackedCache(t *testing.T) {
	big := random(1, bigSize)
	m := newMount(t, []file{reg("big", big)}, passthrough())
	m.close(t)
	m.log.Reset()
	mountUntilEnd(t, "overlay", m.store.dir, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s",
		mkdir(t, m.root+"/lower"), mkdir(t, m.root+"/upper"), mkdir(t, m.root+"/work")))
	m.store.completeAll(t)
	var err error
	if m.Server, err = Mount(m.cfg); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		mustRead(t, m.path("big"), big)
	}
	if n := count(&m.stats.Opens); n != 0 {
		t.Errorf("%d opens", n)
	}
	m.close(t)
	if n := strings.Count(m.log.String(), "passthrough needs"); n != 1 {
		t.Errorf("said %d times that it cannot be", n)
	}
}

func mkdir(t testing.TB, path string) string {
	t.Helper()
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestStorm opens, reads and closes files by many at once, while they become
// complete, and are taken away, and come again: no open and no read may fail, as
// they do when the kernel is told to have one inode in both ways.
func TestStorm(t *testing.T) {
	var files []file
	for i := range 4 {
		files = append(files, reg(fmt.Sprint("f", i), random(byte(i), 200_000)))
	}
	m := newMount(t, files, Config{Passthrough: 3})
	var wg, changing sync.WaitGroup
	stop := make(chan struct{})
	changing.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			f := files[i%len(files)]
			if err := m.store.complete(f.Key); err != nil {
				t.Error(err)
			}
			gone := files[(i+2)%len(files)]
			if err := os.Remove(m.store.dir + "/" + gone.Key.String()); err != nil && !os.IsNotExist(err) {
				t.Error(err)
			}
		}
	})
	for seed := range uint64(8) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 3))
			buf := make([]byte, 5000)
			for range 300 {
				file := files[rng.IntN(len(files))]
				fd, err := unix.Open(m.path(file.Name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					t.Errorf("open: %v", err)
					return
				}
				off := rng.IntN(len(file.content) - len(buf))
				if n, err := unix.Pread(fd, buf, int64(off)); err != nil || !bytes.Equal(buf[:n], file.content[off:off+n]) {
					t.Errorf("read: %d, %v", n, err)
				}
				unix.Close(fd)
			}
		})
	}
	wg.Wait()
	close(stop)
	changing.Wait()
	eventually(t, "all releases", func() bool { return m.pool.Registered() == 0 })
	if m.stats.Passthrough.Load() == 0 || m.store.reads.Load() == 0 {
		t.Errorf("%d opens were passthrough, %d reads came here", m.stats.Passthrough.Load(), m.store.reads.Load())
	}
}
