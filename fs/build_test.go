package fs_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ipfs-stargz/ipfs-stargz/fs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/tree"
)

// mountTree mounts the tree of a run and returns its image's file and names.
func mountTree(t *testing.T, f *fs.FS, cids []string) (image string, names []string) {
	t.Helper()
	dir, err := f.Tree(t.Context(), fs.Run{CIDs: cids})
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(filepath.Dir(dir), "image"), list(t, dir)
}

// unmountTrees unmounts all trees and keeps their images.
func unmountTrees(t *testing.T, f *fs.FS, cids []string) {
	t.Helper()
	if err := f.Retain(cids, nil); err != nil {
		t.Fatal(err)
	}
}

// builtOf returns the bytes of an image's tree, pulled by one process and built
// by the next, and its names.
func builtOf(t *testing.T, s *store, image made) (b []byte, names []string) {
	t.Helper()
	root := t.TempDir()
	f := start(t, root, s)
	image.pull(t, f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = start(t, root, s)
	defer stop(t, f)
	path, names := mountTree(t, f, image.cids)
	return readFile(t, path), names
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// flip changes the byte at an offset of a file, from its end if negative, in its
// place.
func flip(t *testing.T, path string, at int) {
	t.Helper()
	b := readFile(t, path)
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 0x10
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(b[at:at+1], int64(at))
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left in %s: %v, %v", dir, left, err)
	}
}

// TestPullReadsOnce pulls an image of 100 layers, and damages each layer's table
// of contents as soon as it is on the disk: nothing reads it again until the tree
// is built. After that, damage is told of.
func TestPullReadsOnce(t *testing.T) {
	var s store
	image := s.makeImage(t, "image", 100, 40)
	root := t.TempDir()
	f := running(t, root, &s)
	for i, cid := range image.cids {
		add(t, f, cid, image.tocs[i], image.cids[:i]...)
		flip(t, filepath.Join(root, "layers", cid, "index"), -1)
	}
	path, names := mountTree(t, f, image.cids)
	if len(names) < 3000 {
		t.Errorf("%d names", len(names))
	}

	// The image goes, and the tables are needed.
	unmountTrees(t, f, image.cids)
	remove(t, path)
	for range 2 {
		_, err := f.Tree(t.Context(), fs.Run{CIDs: image.cids})
		if !errors.Is(err, layer.ErrDamaged) || !strings.Contains(err.Error(), "pull one again") {
			t.Errorf("a tree of damaged layers: %v", err)
		}
		wantEmpty(t, filepath.Join(root, "trees"))
	}
}

// TestAddMends adds layers, and layers on others, whose tables of contents are
// damaged.
func TestAddMends(t *testing.T) {
	var s store
	image := s.makeImage(t, "image", 4, 100)
	want, names := builtOf(t, &s, image)
	root := t.TempDir()
	index := func(i int) string { return filepath.Join(root, "layers", image.cids[i], "index") }
	f := start(t, root, &s)
	image.pull(t, f)
	restart := func() {
		t.Helper()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		f = start(t, root, &s) // one that has no drafts
	}
	defer func() { stop(t, f) }()
	restart()
	for _, i := range []int{0, 2, 3} {
		flip(t, index(i), -1)
	}
	if _, err := f.Tree(t.Context(), fs.Run{CIDs: image.cids}); !errors.Is(err, layer.ErrDamaged) {
		t.Errorf("a tree of damaged layers: %v", err)
	}
	add(t, f, image.cids[3], image.tocs[3], image.cids[:3]...)
	restart()
	path, got := mountTree(t, f, image.cids)
	if !slices.Equal(got, names) || !bytes.Equal(readFile(t, path), want) {
		t.Errorf("another image, of %d names, want %d", len(got), len(names))
	}

	// A file that is gone is damage as well; what cannot be fetched is an error.
	unmountTrees(t, f, image.cids[:3])
	remove(t, index(1))
	s.unplug(true)
	if _, _, err := f.Add(t.Context(), image.cids[2], "", "", fs.Run{CIDs: image.cids[:2]}); !errors.Is(err, errDown) {
		t.Errorf("nobody has the damaged layer: %v", err)
	}
	s.unplug(false)
	add(t, f, image.cids[2], "", image.cids[:2]...)
}

// TestSharedLowerLayers pulls two images with the same lower layers, in turn.
func TestSharedLowerLayers(t *testing.T) {
	var s store
	for _, cid := range []string{"base", "more", "one", "two"} {
		s.add(t, cid, file{name: cid, body: cid})
	}
	f := running(t, t.TempDir(), &s)
	add(t, f, "base", "")
	add(t, f, "more", "", "base")
	add(t, f, "one", "", "base", "more")
	add(t, f, "two", "", "base", "more")
	add(t, f, "two", "", "base", "more")
	for _, top := range []string{"one", "two"} {
		if _, names := mountTree(t, f, []string{"base", "more", top}); strings.Join(names, " ") != "base more "+top {
			t.Errorf("names: %q", names)
		}
	}
}

// TestRefusedOnOthers has a layer that can be lazy alone, and not on others.
func TestRefusedOnOthers(t *testing.T) {
	var s store
	s.add(t, "low", file{name: "x", body: "x"})
	s.add(t, "top", file{name: "a", body: "a"}, file{name: ".wh.a"})
	f := running(t, t.TempDir(), &s)
	add(t, f, "top", "")
	add(t, f, "low", "")
	_, _, err := f.Add(t.Context(), "top", "", "", fs.Run{CIDs: []string{"low"}})
	var refused *tree.RefusedError
	if !errors.As(err, &refused) || refused.Layer != 1 {
		t.Errorf("got %v", err)
	}
	if _, names := mountTree(t, f, []string{"low"}); strings.Join(names, " ") != "x" {
		t.Errorf("names without it: %q", names)
	}
}

// TestSameBytes builds one tree by different ways.
func TestSameBytes(t *testing.T) {
	var s store
	image := s.makeImage(t, "image", 4, 300)
	want, _ := builtOf(t, &s, image)
	for _, procs := range []int{1, 4} {
		before := runtime.GOMAXPROCS(procs)
		got, _ := builtOf(t, &s, image)
		f := start(t, t.TempDir(), &s)
		image.pull(t, f)
		path, _ := mountTree(t, f, image.cids)
		if !bytes.Equal(got, want) || !bytes.Equal(readFile(t, path), want) {
			t.Errorf("the image differs with %d processors", procs)
		}
		stop(t, f)
		runtime.GOMAXPROCS(before)
	}
}

// ending is a context that ends when it is asked for the n-th time.
type ending struct {
	context.Context
	mu   sync.Mutex
	left int
	done chan struct{}
}

func (e *ending) asked() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.left--; e.left == 0 {
		close(e.done)
	}
	return e.left <= 0
}

func (e *ending) Done() <-chan struct{} { e.asked(); return e.done }

func (e *ending) Err() error {
	if e.asked() {
		return context.Canceled
	}
	return nil
}

// TestCancelledBuild calls a build off wherever it looks whether to go on.
func TestCancelledBuild(t *testing.T) {
	var s store
	image := s.makeImage(t, "image", 3, 50)
	root := t.TempDir()
	f := start(t, root, &s)
	image.pull(t, f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = running(t, root, &s) // one that has no drafts
	for n := 1; ; n++ {
		ctx := &ending{Context: t.Context(), left: n, done: make(chan struct{})}
		_, err := f.Tree(ctx, fs.Run{CIDs: image.cids})
		if err == nil {
			t.Logf("it looks %d times", n-1)
			return
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("called off at %d: %v", n, err)
		}
		wantEmpty(t, filepath.Join(root, "trees"))
	}
}
