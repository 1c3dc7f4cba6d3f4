package kernel_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/cache/internal/kernel"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// overlay mounts an overlay with one file whose contents are those of an object
// in a data-only layer, as a container has it.
func overlay(t *testing.T) (file, object string) {
	t.Helper()
	root := t.TempDir()
	for _, d := range []string{"names", "objects", "m"} {
		must(t, os.Mkdir(filepath.Join(root, d), 0o755))
	}
	program, err := os.ReadFile("/bin/sleep")
	must(t, err)
	object = filepath.Join(root, "objects", "o")
	must(t, os.WriteFile(object, program, 0o444))
	name := filepath.Join(root, "names", "f")
	must(t, os.WriteFile(name, nil, 0o755))
	must(t, os.Truncate(name, int64(len(program))))
	must(t, unix.Setxattr(name, "trusted.overlay.metacopy", nil, 0))
	must(t, unix.Setxattr(name, "trusted.overlay.redirect", []byte("/o"), 0))
	m := filepath.Join(root, "m")
	must(t, unix.Mount("overlay", m, "overlay", unix.MS_RDONLY, "lowerdir="+root+"/names::"+root+"/objects"))
	t.Cleanup(func() {
		if err := unix.Unmount(m, 0); err != nil {
			t.Error(errors.Join(err, unix.Unmount(m, unix.MNT_DETACH)))
		}
	})
	return filepath.Join(m, "f"), object
}

// TestOpened has an object in use through an overlay, in each way there is.
func TestOpened(t *testing.T) {
	file, object := overlay(t)
	f := open(t, object)
	want := func(used bool, what string) {
		t.Helper()
		if got, err := kernel.Opened(f); got != used || err != nil {
			t.Errorf("%s: %v, %v, want %v", what, got, err, used)
		}
	}
	want(false, "nobody")
	_, err := os.Stat(file)
	must(t, err)
	want(false, "known to the overlay")
	user, err := os.Open(file)
	must(t, err)
	want(true, "open")
	var theirs, ours unix.Stat_t
	must(t, errors.Join(unix.Fstat(int(user.Fd()), &theirs), unix.Fstat(int(f.Fd()), &ours)))
	if theirs.Ino == ours.Ino && theirs.Dev == ours.Dev {
		t.Error("an overlay shows the inode below it: then /proc would do as well")
	}
	mapped, err := unix.Mmap(int(user.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	must(t, errors.Join(err, user.Close()))
	want(true, "mapped")
	must(t, unix.Munmap(mapped))
	want(false, "unmapped")
	program := exec.Command(file, "60")
	must(t, program.Start())
	want(true, "executed")
	must(t, program.Process.Kill())
	_ = program.Wait() // it was killed
	eventually(t, "the file of a program that ended is not open", func() bool {
		used, err := kernel.Opened(f)
		must(t, err)
		return !used
	})
	direct, err := os.Open(object)
	must(t, err)
	want(true, "open without the overlay")
	must(t, direct.Close())
	want(false, "closed")
}

// TestLives removes an object that an overlay remembers.
func TestLives(t *testing.T) {
	file, object := overlay(t)
	before, err := os.ReadFile(file)
	must(t, err)
	f, err := os.Open(object)
	must(t, err)
	h, err := kernel.HandleOf(f)
	must(t, errors.Join(err, f.Close()))
	dir := open(t, filepath.Dir(object))
	if n, ok := h.Lives(dir); !ok || n < int64(len(before)) {
		t.Errorf("with a name: %d bytes, %v", n, ok)
	}
	must(t, os.Remove(object))
	if n, ok := h.Lives(dir); !ok || n < int64(len(before)) {
		t.Errorf("remembered by an overlay: %d bytes, %v", n, ok)
	}
	after, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("read after the removal: %d bytes, %v", len(after), err)
	}
	must(t, unix.Unmount(filepath.Dir(file), 0))
	if n, ok := h.Lives(dir); ok || n != 0 {
		t.Errorf("gone: %d bytes, %v", n, ok)
	}
	// For the cleanup.
	must(t, unix.Mount("none", filepath.Dir(file), "tmpfs", 0, ""))
}

// TestCached reads a part of a file that was not in memory, and all of it past
// the page cache.
func TestCached(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	must(t, os.WriteFile(path, data, 0o600))
	f := open(t, path)
	if n := kernel.Cached(f); n == 0 || n > 256 {
		t.Errorf("just written: %d pages of 256", n)
	}
	eventually(t, "a file is not in memory", func() bool {
		must(t, f.Sync())
		must(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
		return kernel.Cached(f) == 0
	})
	d, err := kernel.OpenDirect(path)
	must(t, err)
	defer d.Close()
	buf, err := unix.Mmap(-1, 0, len(data), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(t, err)
	defer func() { must(t, unix.Munmap(buf)) }()
	if n, err := d.Read(buf); n != len(data) || err != nil || !bytes.Equal(buf, data) {
		t.Errorf("direct: %d bytes, %v", n, err)
	}
	if n := kernel.Cached(f); n != 0 {
		t.Errorf("read past the page cache, %d pages are in it", n)
	}
}

// TestSeal seals a file, or is told that this cannot be; in either case it reads
// on.
func TestSeal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(path, []byte("contents"), 0o444))
	f := open(t, path)
	err := kernel.Seal(f)
	switch {
	case err == nil:
		if _, err := os.OpenFile(path, os.O_WRONLY, 0); !kernel.Sealed(f) || err == nil {
			t.Errorf("sealed: %v, and open for writing: %v", kernel.Sealed(f), err)
		}
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY):
		if kernel.Sealed(f) {
			t.Error("sealed all the same")
		}
	default:
		t.Error(err)
	}
	if b, err := os.ReadFile(path); string(b) != "contents" {
		t.Errorf("reads %q, %v", b, err)
	}
}
