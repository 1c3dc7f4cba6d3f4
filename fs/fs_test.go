package fs_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/fs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/mounts"
)

// TestLife goes through a layer's whole life, with the network taken away and
// the daemon stopped at the worst times.
func TestLife(t *testing.T) { inModes(t, life) }

func life(t *testing.T, mode string) {
	s := store{mode: mode}
	small, big, other := random(1, 5000), random(2, 2_500_000), random(3, 9000)
	toc1 := s.add(t, "one", file{name: "d/", dir: true}, file{name: "d/small", body: small}, file{name: "d/big", body: big}, file{name: "gone", body: "x"})
	toc2 := s.add(t, "two", file{name: ".wh.gone"}, file{name: "d/other", body: other}, file{name: "d/unread", body: random(4, 2_000_000)})
	root := t.TempDir()
	f := start(t, root, &s)

	add(t, f, "one", toc1)
	add(t, f, "two", toc2, "one")
	before := s.read()
	dir, umount := overlay(t, f, "one", "two")
	defer umount()
	if s.read() != before {
		t.Errorf("mounting read %d bytes", s.read()-before)
	}
	if names := list(t, dir); !slices.Equal(names, []string{"d", "d/big", "d/other", "d/small", "d/unread"}) {
		t.Errorf("names: %q", names)
	}
	if s.read() != before {
		t.Errorf("listing read %d bytes", s.read()-before)
	}
	mustRead(t, dir+"/d/small", small)
	mustRead(t, dir+"/d/big", big)
	mustRead(t, dir+"/d/other", other)

	// A second container of the same image has the same tree.
	again, umountAgain := overlay(t, f, "one", "two")
	defer umountAgain()
	mustRead(t, again+"/d/big", big)
	if n := mountsBelow(t, filepath.Join(root, "trees")); n != 1 {
		t.Errorf("%d trees are mounted for two containers of one image", n)
	}

	// Nobody has it: what was read is read again, the rest is an error.
	s.unplug(true)
	mustRead(t, dir+"/d/small", small)
	mustRead(t, dir+"/d/big", big)
	if _, err := os.ReadFile(dir + "/d/unread"); err == nil {
		t.Error("read what nobody has")
	}
	if _, _, err := f.Add(t.Context(), "three", "", "", fs.Run{}); !errors.Is(err, errDown) {
		t.Errorf("add a layer that nobody has: %v", err)
	}

	// The daemon is stopped: what was read is read still, in overlays that
	// were mounted before, also what was opened through FUSE. In mode fuse
	// nobody serves names, and with FUSE alone no contents either.
	held, err := os.Open(again + "/d/big")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if mode != fuseAlone {
		if got, err := io.ReadAll(held); err != nil || string(got) != big {
			t.Errorf("an open file: %d bytes, %v", len(got), err)
		}
	}
	if err := held.Close(); err != nil {
		t.Error(err)
	}
	if mode == mounts.ModeKernel {
		mustRead(t, dir+"/d/small", small)
		mustRead(t, dir+"/d/big", big)
		mustRead(t, again+"/d/other", other)
	}

	// It is started again, with no network: the layers are there, and a new
	// container reads what was read, fetching nothing.
	f = running(t, root, &s)
	read := s.read()
	third, umountThird := overlay(t, f, "one", "two")
	defer umountThird()
	mustRead(t, third+"/d/small", small)
	mustRead(t, third+"/d/big", big)
	mustRead(t, third+"/d/other", other)
	if s.read() != read {
		t.Errorf("%d bytes were fetched again", s.read()-read)
	}

	// The network is back.
	s.unplug(false)
	mustRead(t, third+"/d/unread", random(4, 2_000_000))

	// The last container is gone: so is its tree. The layers stay while
	// snapshots need them, then they go too.
	umount()
	umountAgain()
	umountThird()
	if err := f.Retain([]string{"one", "two"}, nil); err != nil {
		t.Fatal(err)
	}
	if n := mountsBelow(t, filepath.Join(root, "trees")); n != 0 {
		t.Errorf("%d trees are mounted for no container", n)
	}
	if err := f.Retain(nil, nil); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"layers", "trees"} {
		if left, _ := os.ReadDir(filepath.Join(root, d)); len(left) > 0 {
			t.Errorf("left in %s: %v", d, left)
		}
	}
	if _, err := f.Tree(t.Context(), fs.Run{CIDs: []string{"one"}}); err == nil {
		t.Error("a tree of a layer that is gone")
	}
}

// TestTreeOverNormal mounts two runs of lazy layers with normal ones below and
// between, as a container has them.
func TestTreeOverNormal(t *testing.T) { inModes(t, treeOverNormal) }

func treeOverNormal(t *testing.T, mode string) {
	s := store{mode: mode}
	s.add(t, "one", file{name: "a/", dir: true}, file{name: "a/.wh.gone"}, file{name: "a/.wh.never"}, file{name: "b/", dir: true}, file{name: "b/.wh.never"})
	s.add(t, "two", file{name: "a/", dir: true}, file{name: "a/.wh.file"}, file{name: "b/", dir: true}, file{name: "b/.wh.file"}, file{name: "c/", dir: true}, file{name: "c/.wh.never"})
	root := t.TempDir()
	f := running(t, root, &s)
	normal := normalLayer(t, "a/gone", "a/file")
	between := normalLayer(t, "b/file")

	low := fs.Run{CIDs: []string{"one"}, Below: []string{normal}}
	add(t, f, "one", "")
	lowDir, err := f.TreeDir(low)
	if err != nil {
		t.Fatal(err)
	}
	high := fs.Run{CIDs: []string{"two"}, Below: []string{between, lowDir, normal}}
	add(t, f, "two", "")
	if _, err := f.Tree(t.Context(), high); err == nil {
		t.Error("a tree over one that is not mounted")
	}
	dirs := []string{between, normal}
	for i, run := range []fs.Run{low, high} {
		dir, err := f.Tree(t.Context(), run)
		if err != nil {
			t.Fatal(err)
		}
		dirs = slices.Insert(dirs, []int{1, 0}[i], dir)
	}
	mnt := t.TempDir()
	if err := f.MountOverlay(mnt, fs.Overlay{Lower: dirs, OverNormal: true}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(list(t, mnt), " "); got != "a b c" {
		t.Errorf("names: %s", got)
	}
	if err := unix.Unmount(mnt, 0); err != nil {
		t.Fatal(err)
	}

	// Their images stay while their layers and what they lie on do.
	images := func() int {
		t.Helper()
		names, err := filepath.Glob(filepath.Join(root, "trees", "*", "image"))
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	for _, c := range []struct {
		gone string
		want int
	}{{"", 2}, {between, 1}, {normal, 0}} {
		if err := errors.Join(os.RemoveAll(c.gone), f.Retain([]string{"one", "two"}, nil)); err != nil {
			t.Fatal(err)
		}
		if n := images(); n != c.want {
			t.Errorf("%d images without %q, want %d", n, c.gone, c.want)
		}
	}
}

// normalLayer makes the directory of a normal layer with these files.
func normalLayer(t *testing.T, files ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "fs")
	for _, f := range files {
		p := filepath.Join(dir, f)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, p); rel != "." {
			names = append(names, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// TestRefused checks that a layer that cannot be lazy says why, and leaves
// nothing behind that would be in the way of the right one.
func TestRefused(t *testing.T) { inModes(t, refused) }

func refused(t *testing.T, mode string) {
	s := store{mode: mode}
	toc := s.add(t, "good", file{name: "a", body: "a"})
	s.add(t, "other", file{name: "b", body: "b"})
	s.add(t, "dangling", file{name: "c", link: "nowhere"})
	s.blobs["plain"] = []byte(random(5, 5000))
	s.blobs["empty"] = nil
	root := t.TempDir()
	f := running(t, root, &s)
	for what, c := range map[string]struct {
		cid, toc string
		want     error
	}{
		"not eStargz":           {"plain", "", layer.ErrNotStargz},
		"empty":                 {"empty", "", layer.ErrNotStargz},
		"another layer's TOC":   {"other", toc, layer.ErrTOCDigest},
		"nobody has it":         {"missing", "", errDown},
		"TOC digest of no kind": {"good", "sha256:beef", nil},
		"a path for a CID":      {"../x", "", nil},
		"dangling link":         {"dangling", "", nil},
	} {
		_, _, err := f.Add(t.Context(), c.cid, c.toc, "", fs.Run{})
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", what, err, c.want)
		}
	}
	add(t, f, "good", toc)
	add(t, f, "other", "")
	if _, _, err := f.Add(t.Context(), "other", toc, "", fs.Run{}); !errors.Is(err, layer.ErrTOCDigest) {
		t.Errorf("the same, here already: %v", err)
	}
	tmp, err := filepath.Glob(filepath.Join(root, "layers", "tmp-*"))
	if err != nil || len(tmp) > 0 {
		t.Errorf("left behind: %v, %v", tmp, err)
	}
}

// TestCancelled checks that a pull that is called off fails no other pull of
// the same layer.
func TestCancelled(t *testing.T) { inModes(t, cancelled) }

func cancelled(t *testing.T, mode string) {
	s := store{mode: mode}
	toc := s.add(t, "one", file{name: "a", body: "a"})
	gate, waiting := make(chan struct{}), make(chan struct{}, 8)
	root := t.TempDir()
	f, err := fs.New(t.Context(), s.inMode(fs.Config{
		Root: root,
		Open: func(ctx context.Context, cid string) (layer.Source, error) {
			waiting <- struct{}{}
			select {
			case <-gate:
				return s.open(ctx, cid)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
		LookupPatience: time.Second,
		Log:            slog.New(slog.NewTextHandler(t.Output(), nil)),
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { t.Log(errors.Join(f.Retain(nil, nil), f.Close())) }()
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error), make(chan error)
	go func() {
		_, _, err := f.Add(ctx, "one", toc, "", fs.Run{})
		first <- err
	}()
	<-waiting
	go func() {
		_, _, err := f.Add(t.Context(), "one", toc, "", fs.Run{})
		second <- err
	}()
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
	close(gate)
	if err := <-second; err != nil {
		t.Errorf("the other: %v", err)
	}
}

// TestStaleFUSE checks that a start after the daemon was killed replaces the
// dead mount, and that overlays of before read what is in the cache.
func TestStaleFUSE(t *testing.T) {
	root := t.TempDir()
	// Of a daemon in the same mode, and of one in the other.
	deadFUSE(t, filepath.Join(root, "fuse"))
	deadFUSE(t, filepath.Join(root, "fuse-names"))
	var s store
	toc := s.add(t, "one", file{name: "a", body: "hello"})
	f := running(t, root, &s)
	add(t, f, "one", toc)
	if n := mountsBelow(t, root); n != 1 {
		t.Errorf("%d mounts where one serves", n)
	}
	dir, umount := overlay(t, f, "one")
	defer umount()
	mustRead(t, dir+"/a", "hello")
}

// deadFUSE mounts a file system that nobody serves.
func deadFUSE(t *testing.T, fuse string) {
	t.Helper()
	if err := os.MkdirAll(fuse, 0o700); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("dead", fuse, "fuse.dead", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(fuse); !errors.Is(err, unix.ENOTCONN) {
		t.Fatalf("the mount is not dead: %v", err)
	}
}
