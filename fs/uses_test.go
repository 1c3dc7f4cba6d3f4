package fs_test

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/mounts"
)

// withBudget starts a file system whose cache has to evict so many of the bytes
// that it holds, and waits until it has.
func withBudget(t *testing.T, root string, s *store, held, evict int64) *fs.FS {
	t.Helper()
	f, err := fs.New(t.Context(), fs.Config{
		Root: root, Open: s.open, Mode: mounts.ModeAuto, SmallObject: 1 << 20, LookupPatience: time.Minute,
		Cache: cache.Options{Budget: (held - evict) * 20 / 19},
		Log:   slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(2 * time.Minute); cacheUsage(t, f).EvictedBytes < evict; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("nothing gives way: %+v", cacheUsage(t, f))
		}
	}
	return f
}

// TestUses runs out of room with three images, one of them mounted: what is
// evicted is what was not used for longest, and no reader notices.
func TestUses(t *testing.T) {
	const size = 60 << 10 // a multiple of the disk's blocks
	var s store
	root := t.TempDir()
	t.Cleanup(func() { unmountBelow(t, root) }) // nothing, if all goes well
	bodies := map[string]string{}
	for i, f := range []string{"a/1", "a/2", "a/3", "b/1", "b/2", "c/1", "c/2"} {
		bodies[f] = random(byte(i), size)
	}
	for layer, names := range map[string][]string{"a": {"1", "2", "3"}, "b": {"1", "2"}, "c": {"1", "2"}} {
		var files []file
		for _, n := range names {
			files = append(files, file{name: n, body: bodies[layer+"/"+n]})
		}
		s.add(t, layer, files...)
	}
	read := func(f *fs.FS, layer string, names ...string) {
		t.Helper()
		dir, umount := overlay(t, f, layer)
		defer umount()
		for _, n := range names {
			mustRead(t, dir+"/"+n, bodies[layer+"/"+n])
		}
	}
	kept := func(names ...string) {
		t.Helper()
		entries, err := os.ReadDir(root + "/cache/objects")
		if err != nil || len(entries) != len(names) {
			t.Errorf("%d objects are kept, want those of %q (%v)", len(entries), names, err)
		}
	}

	f := start(t, root, &s)
	for _, l := range []string{"a", "b", "c"} {
		add(t, f, l, "")
	}
	dir, umount := overlay(t, f, "a")
	defer umount()
	for _, n := range []string{"1", "2", "3"} {
		mustRead(t, dir+"/"+n, bodies["a/"+n])
	}
	tree, err := f.TreeDir(fs.Run{CIDs: []string{"a"}})
	if err != nil {
		t.Fatal(err)
	}
	unmountOthers := func(f *fs.FS) {
		t.Helper()
		must(t, f.Retain([]string{"a", "b", "c"}, []string{tree}))
	}
	read(f, "c", "1", "2")
	unmountOthers(f)
	read(f, "b", "1", "2")
	unmountOthers(f)
	held := cacheUsage(t, f).Bytes
	if held != 7*size {
		t.Fatalf("%d bytes are held, not those of 7 files", held)
	}
	must(t, f.Close())

	// The network stays away: what is not kept cannot be read.
	s.unplug(true)
	f = withBudget(t, root, &s, held, 2*size)
	kept("a/1", "a/2", "a/3", "b/1", "b/2")
	read(f, "b", "1", "2")
	unmountOthers(f)
	must(t, f.Close())
	held -= 2 * size
	f = withBudget(t, root, &s, held, 2*size)
	kept("a/1", "a/2", "a/3")
	for _, n := range []string{"1", "2", "3"} {
		mustRead(t, dir+"/"+n, bodies["a/"+n])
	}
	open, err := os.Open(dir + "/2")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	must(t, f.Close())

	// What is mounted goes last, and what is open stays. The overlay does not
	// keep what went.
	held -= 2 * size
	f = withBudget(t, root, &s, held, 2*size)
	kept("a/2")
	for end := time.Now().Add(time.Minute); cacheUsage(t, f).Lingering > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d bytes of what was evicted linger", cacheUsage(t, f).Lingering)
		}
	}
	if got, err := io.ReadAll(open); err != nil || string(got) != bodies["a/2"] {
		t.Errorf("an open file reads %d bytes, %v", len(got), err)
	}
	if _, err := os.ReadFile(dir + "/1"); err == nil {
		t.Error("read what is kept nowhere")
	}
	s.unplug(false)
	read(f, "a", "1", "2", "3")
	must(t, open.Close())
	umount()
	must(t, errors.Join(f.Retain(nil, nil), f.Close()))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// unmountBelow unmounts what a test that failed left mounted.
func unmountBelow(t *testing.T, root string) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for l := range strings.Lines(string(b)) {
		if dir := strings.Fields(l)[4]; strings.HasPrefix(dir, root+"/") {
			t.Errorf("%s is left mounted", dir)
			must(t, unix.Unmount(dir, unix.MNT_DETACH))
		}
	}
}
