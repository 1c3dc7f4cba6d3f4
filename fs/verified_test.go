package fs_test

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/fs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/mounts"
)

// treeBed is a tree that was mounted once, and what it has to be.
type treeBed struct {
	s     store
	root  string
	f     *fs.FS
	log   bytes.Buffer // warnings
	cids  []string
	image string // path
	bytes []byte
	names []string
}

func newTreeBed(t *testing.T, mode string) *treeBed {
	b := &treeBed{root: t.TempDir(), s: store{mode: mode}}
	image := b.s.makeImage(t, "image", 3, 200)
	b.cids = image.cids
	b.start(t)
	t.Cleanup(func() { stop(t, b.f) })
	image.pull(t, b.f)
	b.image, b.names = mountTree(t, b.f, b.cids)
	b.bytes = readFile(t, b.image)
	unmountTrees(t, b.f, b.cids)
	return b
}

func (b *treeBed) start(t *testing.T) {
	b.f = startLogging(t, b.root, &b.s, &b.log, slog.LevelWarn)
}

func (b *treeBed) restart(t *testing.T) {
	t.Helper()
	if err := b.f.Close(); err != nil {
		t.Fatal(err)
	}
	b.start(t)
}

// check mounts the tree: it has to be right, and built again if it is told so.
func (b *treeBed) check(t *testing.T, rebuilt bool) {
	t.Helper()
	b.log.Reset()
	before := inode(t, b.image)
	_, names := mountTree(t, b.f, b.cids)
	if !slices.Equal(names, b.names) {
		t.Errorf("%d names, want %d", len(names), len(b.names))
	}
	if !bytes.Equal(readFile(t, b.image), b.bytes) {
		t.Error("the image has other bytes")
	}
	if told := strings.Count(b.log.String(), "level=WARN"); told != map[bool]int{true: 1}[rebuilt] || rebuilt == (inode(t, b.image) == before) {
		t.Errorf("built again: want %v; log: %s", rebuilt, &b.log)
	}
	unmountTrees(t, b.f, b.cids)
}

// inode returns the number of a file's inode, 0 if there is none.
func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil && !errors.Is(err, unix.ENOENT) {
		t.Fatal(err)
	}
	return st.Ino
}

// overwrite replaces a file's contents in its place.
func overwrite(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedTree damages a tree's image in every way, under the process that
// verified it and under the next one.
func TestDamagedTree(t *testing.T) { in(t, damagedTree, mounts.ModeKernel, mounts.ModeFUSE) }

func damagedTree(t *testing.T, mode string) {
	b := newTreeBed(t, mode)
	other := newTreeBed(t, mode)
	other.s.add(t, "other", file{name: "other", body: "x"})
	add(t, other.f, "other", "")
	otherImage, _ := mountTree(t, other.f, []string{"other"})
	origin := filepath.Join(filepath.Dir(b.image), "run")

	b.check(t, false)
	b.restart(t)
	b.check(t, false)
	for what, damage := range map[string]func(){
		"superblock":                func() { flip(t, b.image, 1024+20) },
		"UUID":                      func() { flip(t, b.image, 1024+48) },
		"rest of the first block":   func() { flip(t, b.image, 2000) },
		"root":                      func() { flip(t, b.image, 4096+4) },
		"first inodes":              func() { flip(t, b.image, 4096+700) },
		"middle":                    func() { flip(t, b.image, len(b.bytes)/2) },
		"last block":                func() { flip(t, b.image, -1) },
		"cut to nothing":            func() { overwrite(t, b.image, nil) },
		"cut to its first block":    func() { overwrite(t, b.image, b.bytes[:4096]) },
		"cut by half":               func() { overwrite(t, b.image, b.bytes[:len(b.bytes)/2]) },
		"cut by a byte":             func() { overwrite(t, b.image, b.bytes[:len(b.bytes)-1]) },
		"another image":             func() { overwrite(t, b.image, readFile(t, otherImage)) },
		"zeros":                     func() { overwrite(t, b.image, make([]byte, len(b.bytes))) },
		"no word of what it is of":  func() { remove(t, origin) },
		"nonsense of what it is of": func() { overwrite(t, origin, []byte("{")) },
	} {
		t.Run(what, func(t *testing.T) {
			damage()
			if strings.Contains(what, "what it is of") {
				b.restart(t) // the image itself is as it was: who verified it does not ask
			}
			b.check(t, true)
			damage()
			b.restart(t)
			b.check(t, true)
			b.check(t, false)
			b.restart(t)
			b.check(t, false)
		})
	}

	// Touched and not changed: it is read again, and good.
	overwrite(t, b.image, b.bytes)
	b.check(t, false)
	// Gone: it is built, and that is no damage.
	remove(t, b.image)
	b.log.Reset()
	if _, names := mountTree(t, b.f, b.cids); !slices.Equal(names, b.names) || b.log.Len() > 0 {
		t.Errorf("without an image: %d names, log: %s", len(names), &b.log)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}
