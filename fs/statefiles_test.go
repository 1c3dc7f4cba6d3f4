package fs_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/ipfs-stargz/ipfs-stargz/fs"
)

const stateDir = ".stargz-snapshotter"

// stateFile is what a state file says.
type stateFile struct {
	Digest         string  `json:"digest"`
	Size           int64   `json:"size"`
	FetchedSize    int64   `json:"fetchedSize"`
	FetchedPercent float64 `json:"fetchedPercent"`
}

func stateFrom(t *testing.T, b []byte) (s stateFile) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil || !bytes.HasSuffix(b, []byte("\n")) {
		t.Fatalf("state file %q: %v", b, err)
	}
	return s
}

// readState reads a state file, and checks that it is what its name promises.
func readState(t *testing.T, path string) stateFile {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	b := readFile(t, path)
	if st.Size() != int64(len(b)) || st.Mode() != 0o444 {
		t.Errorf("%s: %d bytes, in fact %d, mode %v", path, st.Size(), len(b), st.Mode())
	}
	s := stateFrom(t, b)
	if s.Digest+".json" != filepath.Base(path) {
		t.Errorf("%s is of %s", path, s.Digest)
	}
	return s
}

// awaitFetched reads a state until it says that so many bytes are here: what was
// read reaches the cache a moment later.
func awaitFetched(t *testing.T, bytes int64, read func() stateFile) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		s := read()
		if s.FetchedSize == bytes {
			if want := 100 * float64(bytes) / float64(s.Size); s.FetchedPercent != want {
				t.Errorf("%v %% are here, want %v", s.FetchedPercent, want)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("want %d bytes fetched: %+v", bytes, s)
		}
	}
}

func addCalled(t *testing.T, f *fs.FS, cid, toc, called string, on ...string) {
	t.Helper()
	if _, _, err := f.Add(t.Context(), cid, toc, called, fs.Run{CIDs: on}); err != nil {
		t.Fatal(err)
	}
}

func TestNoStateFilesByDefault(t *testing.T) {
	inModes(t, func(t *testing.T, mode string) {
		s := store{mode: mode}
		toc := s.add(t, "one", file{name: "a", body: "a"})
		f := running(t, t.TempDir(), &s)
		add(t, f, "one", toc)
		dir, umount := overlay(t, f, "one")
		defer umount()
		if names := list(t, dir); !slices.Equal(names, []string{"a"}) {
			t.Errorf("names: %q", names)
		}
	})
}

// TestStateFiles has state files follow what is read, also over a restart, and
// checks that they are no part of the cache.
func TestStateFiles(t *testing.T) { inModes(t, stateFiles) }

func stateFiles(t *testing.T, mode string) {
	s := store{mode: mode, stateFiles: true}
	small, big, other := random(1, 5000), random(2, 2_500_000), random(3, 9000)
	toc1 := s.add(t, "one", file{name: "small", body: small}, file{name: "big", body: big})
	toc2 := s.add(t, "two", file{name: "other", body: other}, file{name: "again", body: other})
	called := digest.FromString("the blob of one").String()
	root := t.TempDir()
	f := start(t, root, &s)
	addCalled(t, f, "one", toc1, called)
	addCalled(t, f, "two", toc2, "sha256:../../beef", "one") // no digest
	dir, umount := overlay(t, f, "one", "two")
	defer umount()

	if got, want := list(t, filepath.Join(dir, stateDir)), []string{called + ".json", "two.json"}; !slices.Equal(got, want) {
		t.Fatalf("state files: %q, want %q", got, want)
	}
	one, two := filepath.Join(dir, stateDir, called+".json"), filepath.Join(dir, stateDir, "two.json")
	for path, size := range map[string]int{one: len(small) + len(big), two: len(other)} {
		if got := readState(t, path); got.Size != int64(size) || got.FetchedSize != 0 || got.FetchedPercent != 0 {
			t.Errorf("before anything is read: %+v", got)
		}
	}
	wantCached(t, f, root)

	// A descriptor that was open before tells the same as a new one.
	held, err := os.Open(one)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	throughHeld := func() stateFile {
		b := make([]byte, 4096)
		n, _ := held.ReadAt(b, 0)
		return stateFrom(t, b[:n])
	}
	awaitFetched(t, 0, throughHeld)
	mustRead(t, dir+"/small", small)
	awaitFetched(t, int64(len(small)), throughHeld)
	awaitFetched(t, int64(len(small)), func() stateFile { return readState(t, one) })
	mustRead(t, dir+"/big", big)
	awaitFetched(t, int64(len(small)+len(big)), throughHeld)
	mustRead(t, dir+"/other", other)
	awaitFetched(t, int64(len(other)), func() stateFile { return readState(t, two) })
	wantCached(t, f, root, small, other, big)

	// A second container, another process, and layers that are gone.
	again, umountAgain := overlay(t, f, "one", "two")
	defer umountAgain()
	if got := readState(t, filepath.Join(again, stateDir, "two.json")); got.FetchedPercent != 100 {
		t.Errorf("in a second container: %+v", got)
	}
	if err := errors.Join(held.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	f = running(t, root, &s)
	third, umountThird := overlay(t, f, "one", "two")
	defer umountThird()
	awaitFetched(t, int64(len(small)+len(big)), func() stateFile {
		return readState(t, filepath.Join(third, stateDir, called+".json"))
	})
	if err := f.Retain(nil, nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{called, "two"} {
		if b, err := os.ReadFile(filepath.Join(third, stateDir, name+".json")); err == nil {
			t.Errorf("of a layer that is gone: %q", b)
		}
	}
}

// wantCached checks that the cache holds these contents and no others.
func wantCached(t *testing.T, f *fs.FS, root string, contents ...string) {
	t.Helper()
	objects, err := os.ReadDir(filepath.Join(root, "cache", "objects"))
	if err != nil {
		t.Fatal(err)
	}
	var got, want []int64
	for _, o := range objects {
		info, err := o.Info()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, info.Size())
	}
	for _, c := range contents {
		want = append(want, int64(len(c)))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("objects of %d bytes are in the cache, want %d", got, want)
	}
	if partial, err := os.ReadDir(filepath.Join(root, "cache", "partial")); err != nil || len(partial) > 0 {
		t.Errorf("partly in the cache: %v, %v", partial, err)
	}
	if u := cacheUsage(t, f); len(contents) == 0 && u.Bytes != 0 {
		t.Errorf("usage of an empty cache: %+v", u)
	}
}

// TestStateFilesAreOnTop has images with names of their own in the way.
func TestStateFilesAreOnTop(t *testing.T) { inModes(t, stateFilesAreOnTop) }

func stateFilesAreOnTop(t *testing.T, mode string) {
	s := store{mode: mode, stateFiles: true}
	s.add(t, "file", file{name: stateDir, body: "mine"})
	s.add(t, "dir", file{name: stateDir + "/", dir: true}, file{name: stateDir + "/mine", body: "mine"}, file{name: stateDir + "/dir.json", body: "{}"})
	f := running(t, t.TempDir(), &s)
	add(t, f, "file", "")
	dir, umount := overlay(t, f, "file")
	defer umount()
	readState(t, filepath.Join(dir, stateDir, "file.json"))

	add(t, f, "dir", "")
	dir, umountDir := overlay(t, f, "dir")
	defer umountDir()
	readState(t, filepath.Join(dir, stateDir, "dir.json"))
	mustRead(t, filepath.Join(dir, stateDir, "mine"), "mine")
}

// TestTreesWithStateFiles builds trees with and without state files, at once and
// layer by layer.
func TestTreesWithStateFiles(t *testing.T) {
	var s store
	toc1 := s.add(t, "one", file{name: "a", body: "a"})
	toc2 := s.add(t, "two", file{name: "b", body: "b"})
	image := made{cids: []string{"one", "two"}, tocs: []string{toc1, toc2}}
	root := t.TempDir()
	without := start(t, root, &s)
	image.pull(t, without)
	plain, names := mountTree(t, without, image.cids)
	if len(names) != 2 {
		t.Errorf("names: %q", names)
	}
	unmountTrees(t, without, image.cids)
	closed(t, without)

	// The tree that was built without them is another one.
	s.stateFiles = true
	f := running(t, root, &s)
	with, names := mountTree(t, f, image.cids)
	want := []string{stateDir, stateDir + "/one.json", stateDir + "/two.json", "a", "b"}
	if with == plain || !slices.Equal(names, want) {
		t.Errorf("%s, after %s without: %q", with, plain, names)
	}

	// Nor is a tree with them a draft of what comes on top.
	g := running(t, t.TempDir(), &s)
	add(t, g, "one", toc1)
	if _, names := mountTree(t, g, image.cids[:1]); len(names) != 3 {
		t.Errorf("names of one layer: %q", names)
	}
	add(t, g, "two", toc2, "one")
	path, names := mountTree(t, g, image.cids)
	if !slices.Equal(names, want) {
		t.Errorf("names of two layers: %q", names)
	}
	if fresh, _ := builtOf(t, &s, image); !bytes.Equal(readFile(t, path), fresh) || !bytes.Equal(readFile(t, with), fresh) {
		t.Error("the same tree, built otherwise, has other bytes")
	}
}

// TestLayerIsCalledOnce checks that a layer keeps its name: it is part of trees that
// may be mounted.
func TestLayerIsCalledOnce(t *testing.T) {
	s := store{stateFiles: true}
	toc := s.add(t, "one", file{name: "a", body: "a"})
	root := t.TempDir()
	f := running(t, root, &s)
	first := digest.FromString("first").String()
	addCalled(t, f, "one", toc, first)
	dir, _ := mountTree(t, f, []string{"one"})

	index := filepath.Join(root, "layers", "one", "index")
	unmountTrees(t, f, []string{"one"})
	remove(t, dir)
	flip(t, index, -1)
	if _, err := f.Tree(t.Context(), fs.Run{CIDs: []string{"one"}}); err == nil {
		t.Fatal("a damaged layer was not noticed")
	}
	addCalled(t, f, "one", toc, digest.FromString("second").String())
	again, names := mountTree(t, f, []string{"one"})
	if again != dir || !slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, first) }) {
		t.Errorf("%s, and was %s: %q", again, dir, names)
	}
}
