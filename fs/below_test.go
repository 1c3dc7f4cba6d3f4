package fs

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// layerDir makes a lower directory: "d/" is a directory, "d!" an opaque one,
// "-f" a whiteout, "@l" a symbolic link to d, anything else a file.
func layerDir(t *testing.T, dir string, names ...string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		p := filepath.Join(dir, strings.TrimRight(n, "/!"))
		var err error
		parent, base := filepath.Split(p)
		switch {
		case strings.HasSuffix(n, "/"):
			err = os.Mkdir(p, 0o755)
		case strings.HasSuffix(n, "!"):
			err = errors.Join(os.Mkdir(p, 0o755), unix.Lsetxattr(p, "trusted.overlay.opaque", []byte("y"), 0))
		case base[0] == '-':
			err = unix.Mknod(parent+base[1:], unix.S_IFCHR, 0)
		case base[0] == '@':
			err = os.Symlink("d", parent+base[1:])
		default:
			err = os.WriteFile(p, nil, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestBelow(t *testing.T) {
	for _, c := range []struct {
		name        string
		layers      [][]string // topmost first
		has, hasNot []string
	}{
		{"one layer", [][]string{{"d/", "d/f"}}, []string{"d", "d/f"}, []string{"x", "d/x", "d/f/x", "x/y/z"}},
		{"merged", [][]string{{"d/", "d/f"}, {"d/", "d/g", "h"}}, []string{"d/f", "d/g", "h"}, nil},
		{"whiteout of a file", [][]string{{"-f"}, {"f"}}, nil, []string{"f"}},
		{"whiteout of a directory", [][]string{{"-d"}, {"d/", "d/f"}}, nil, []string{"d", "d/f"}},
		{"whiteout between", [][]string{{"d/", "d/f"}, {"-d"}, {"d/", "d/g"}}, []string{"d", "d/f"}, []string{"d/g"}},
		{"opaque", [][]string{{"d!", "d/f"}, {"d/", "d/g"}}, []string{"d", "d/f"}, []string{"d/g"}},
		{"opaque in a hidden directory", [][]string{{"d/"}, {"d!", "d/e/", "d/e/f"}, {"d/", "d/e/", "d/e/g"}}, []string{"d/e/f"}, []string{"d/e/g"}},
		{"file over directory", [][]string{{"d"}, {"d/", "d/f"}}, []string{"d"}, []string{"d/f"}},
		{"directory over file over directory", [][]string{{"d/"}, {"d"}, {"d/", "d/f"}}, []string{"d"}, []string{"d/f"}},
		{"no link is followed", [][]string{{"@l"}, {"d/", "d/f", "l/", "l/g"}}, []string{"l", "d/f"}, []string{"l/f", "l/g"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var roots []string
			for i, names := range c.layers {
				roots = append(roots, layerDir(t, filepath.Join(t.TempDir(), fmt.Sprint(i)), names...))
			}
			b, err := openBelow(roots)
			if err != nil {
				t.Fatal(err)
			}
			for i, p := range append(c.has, c.hasNot...) {
				if got, err := b.has(p); err != nil || got != (i < len(c.has)) {
					t.Errorf("%s: %t, %v", p, got, err)
				}
			}
		})
	}
}

func TestBelowLimits(t *testing.T) {
	dir := layerDir(t, t.TempDir(), "d/", "f")
	if _, err := openBelow([]string{dir, filepath.Join(dir, "gone")}); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
	if _, err := openBelow([]string{filepath.Join(dir, "f")}); err == nil {
		t.Error("a file for a directory")
	}
	b, err := openBelow([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range []string{"d/" + strings.Repeat("n", 256), strings.Repeat("n", 256) + "/x", "d"} {
		if has, err := b.has(p); err != nil || !has {
			t.Errorf("path %d: %t, %v", i, has, err)
		}
	}
}

// TestBelowAsOverlay compares, for random layers, what is found with what a
// real overlay of them has.
func TestBelowAsOverlay(t *testing.T) {
	var paths []string
	for _, a := range "abc" {
		for _, b := range "abc" {
			for _, c := range "abc" {
				paths = append(paths, fmt.Sprintf("%c/%c/%c", a, b, c))
			}
			paths = append(paths, fmt.Sprintf("%c/%c", a, b))
		}
		paths = append(paths, string(a))
	}
	found := map[bool]int{}
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 9))
		dir := t.TempDir()
		var roots []string
		for i := range 2 + random.IntN(4) {
			roots = append(roots, layerDir(t, filepath.Join(dir, fmt.Sprint(i)), randomNames(random, "", 3)...))
		}
		b, err := openBelow(roots)
		if err != nil {
			t.Fatal(err)
		}
		mnt := layerDir(t, filepath.Join(dir, "m"))
		if err := unix.Mount("overlay", mnt, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(roots, ":")); err != nil {
			t.Fatal(err)
		}
		random.Shuffle(len(paths), func(i, j int) { paths[i], paths[j] = paths[j], paths[i] })
		for _, p := range paths {
			got, err := b.has(p)
			if err != nil {
				t.Error(err)
			}
			var st unix.Stat_t
			// The links lead to nothing.
			err = unix.Lstat(filepath.Join(mnt, p), &st)
			if err != nil && err != unix.ENOENT && err != unix.ENOTDIR {
				t.Error(err)
			}
			if want := err == nil; got != want {
				t.Errorf("seed %d: %s: %t, in the overlay %t", seed, p, got, want)
			}
			found[got]++
		}
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Fatal(err)
		}
	}
	if found[true] < 1000 || found[false] < 1000 {
		t.Errorf("of the paths %d are there and %d not: too few", found[true], found[false])
	}
}

// randomNames returns what [layerDir] makes of a directory with at most three
// names.
func randomNames(random *rand.Rand, dir string, depth int) (names []string) {
	for _, base := range []string{"a", "b", "c"} {
		p := dir + base
		switch n := random.IntN(20); {
		case n < 11 && depth > 1:
			mark := "/"
			if n < 3 {
				mark = "!"
			}
			names = append(append(names, p+mark), randomNames(random, p+"/", depth-1)...)
		case n < 14:
			names = append(names, dir+"-"+base)
		case n < 16:
			names = append(names, p)
		case n == 16:
			names = append(names, dir+"@"+base)
		}
	}
	return names
}
