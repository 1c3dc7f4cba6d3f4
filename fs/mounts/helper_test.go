package mounts

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/tree"
)

// The tests of this package need root: they mount EROFS and overlayfs.

func TestMain(m *testing.M) {
	if dir := os.Getenv(probeChild); dir != "" {
		probeUntilKilled(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// The steps of a probe.
const (
	fromFile = "EROFS from a file"
	fromLoop = "EROFS from a loop device"
	over     = "overlay over "
	by       = " by "
)

var errRefused = errors.New("refused by the test")

// refusing refuses these steps.
func refusing(steps ...string) func(string) error {
	return func(step string) error {
		if slices.Contains(steps, step) {
			return errRefused
		}
		return nil
	}
}

// way is one of the ways to mount, and what must be refused for a probe to come
// to it.
type way struct {
	trees   TreeSource
	data    OptionSet
	plain   OptionSet
	refused []string
}

var ways = []way{
	{FromFile, Separate, Separate, nil},
	{FromFile, SeparateMetacopy, Separate, []string{over + fromFile + by + string(Separate)}},
	{FromFile, OneString, OneString, []string{
		over + fromFile + by + string(Separate), over + fromFile + by + string(SeparateMetacopy), StepPlain + string(Separate),
	}},
	{FromLoop, Separate, Separate, []string{fromFile}},
	// A file system too many below the overlay.
	{FromLoop, Separate, Separate, []string{
		over + fromFile + by + string(Separate), over + fromFile + by + string(SeparateMetacopy), over + fromFile + by + string(OneString),
	}},
	{FromLoop, SeparateMetacopy, Separate, []string{fromFile, over + fromLoop + by + string(Separate)}},
	{FromLoop, OneString, OneString, []string{
		fromFile, over + fromLoop + by + string(Separate), over + fromLoop + by + string(SeparateMetacopy), StepPlain + string(Separate),
	}},
}

// probed are what probes find when all that comes before a way is refused.
var probed = sync.OnceValues(func() ([]*Kernel, error) {
	dir, err := os.MkdirTemp("", "mounts")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var kernels []*Kernel
	for _, w := range ways {
		k, err := probe(context.Background(), dir, refusing(w.refused...))
		if err != nil {
			return nil, err
		}
		kernels = append(kernels, k)
	}
	return kernels, nil
})

// eachWay calls fn with what a kernel would be found to be that takes nothing
// better.
func eachWay(t *testing.T, fn func(t *testing.T, k *Kernel)) {
	t.Helper()
	kernels, err := probed()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kernels {
		t.Run(string(k.Trees)+" "+string(k.Data), func(t *testing.T) { fn(t, k) })
	}
}

// tempDir is t.TempDir with a short path, open to all: options have one page,
// and users of other namespaces look into it.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "m")
	must(t, err, os.Chmod(dir, 0o755))
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return dir
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// mkdirs makes directories below dir and returns their paths.
func mkdirs(t *testing.T, dir string, names ...string) []string {
	t.Helper()
	paths := make([]string, len(names))
	for i, n := range names {
		paths[i] = filepath.Join(dir, n)
		must(t, os.MkdirAll(paths[i], 0o755))
	}
	return paths
}

func write(t *testing.T, name, body string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(body), 0o644))
}

func has(t *testing.T, name, want string) {
	t.Helper()
	if got, err := os.ReadFile(name); err != nil || string(got) != want {
		t.Errorf("%s: %q, %v, want %q", name, got, err, want)
	}
}

// buildTree makes the image of a tree of files, by name, and their objects.
func buildTree(t *testing.T, image, objects string, files map[string]string) {
	t.Helper()
	must(t, os.MkdirAll(objects, 0o755))
	entries := []layer.Entry{{Name: "null", Type: layer.Char, Mode: 0o666, Major: 1, Minor: 3}}
	for name, body := range files {
		key := layer.Key(sha256.Sum256([]byte(body)))
		entries = append(entries, layer.Entry{Name: name, Type: layer.Reg, Mode: 0o644, Size: int64(len(body)), Key: key})
		write(t, filepath.Join(objects, key.String()), body)
	}
	f, err := os.Create(image)
	must(t, err)
	_, err = tree.Build(t.Context(), f, [][]layer.Entry{entries}, tree.Options{})
	must(t, err, f.Close())
}

// mountTree mounts the image until the test ends.
func mountTree(t *testing.T, k *Kernel, image, target string) {
	t.Helper()
	must(t, os.MkdirAll(target, 0o755), k.MountTree(image, target))
	t.Cleanup(func() { must(t, UnmountStale(target)) })
}

// mountOverlay mounts an overlay until the test ends.
func mountOverlay(t *testing.T, k *Kernel, target string, o Overlay) {
	t.Helper()
	must(t, os.MkdirAll(target, 0o755), k.MountOverlay(target, o))
	t.Cleanup(func() { must(t, UnmountStale(target)) })
}

// container is a tree under a writable overlay.
type container struct {
	dir, tree, root, upper string
	overlay                Overlay
}

// newContainer makes what a container's overlay is made of, over a tree with
// one file, "file".
func newContainer(t *testing.T, k *Kernel) container {
	t.Helper()
	d := tempDir(t)
	c := container{dir: d, tree: d + "/tree", root: d + "/root", upper: d + "/upper"}
	buildTree(t, d+"/image", d+"/data", map[string]string{"file": "of the tree", "other": "too"})
	mountTree(t, k, d+"/image", c.tree)
	mkdirs(t, d, "none", "upper", "work", "root")
	c.overlay = Overlay{Lower: []string{c.tree}, Data: []string{d + "/none", d + "/data"}, Upper: c.upper, Work: d + "/work"}
	return c
}

// below are the mounts below dir.
func below(t *testing.T, dir string) (dirs []string) {
	t.Helper()
	mounts, err := Mounts()
	must(t, err)
	for _, m := range mounts {
		if strings.HasPrefix(m.Dir, dir+"/") {
			dirs = append(dirs, m.Dir)
		}
	}
	return dirs
}

// loops are the loop devices of files below dir.
func loops(t *testing.T, dir string) (devices []string) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must(t, err)
	for _, f := range files {
		// It goes with its device.
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), dir+"/") {
			devices = append(devices, f)
		}
	}
	return devices
}

func statfs(t *testing.T, dir string) unix.Statfs_t {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	return st
}
