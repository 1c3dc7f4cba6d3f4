package optimize

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// layerDir makes the directory of an unpacked layer. A name that begins with "-"
// is deleted in it, "a>b" is a symbolic link, and others are files as long as
// their names.
func layerDir(t *testing.T, names ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, name := range names {
		deleted, isDeleted := strings.CutPrefix(name, "-")
		link, to, isLink := strings.Cut(name, ">")
		path := filepath.Join(root, name)
		var err error
		if err = os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		switch {
		case isDeleted:
			err = unix.Mknod(filepath.Join(root, deleted), unix.S_IFCHR, 0)
		case isLink:
			err = os.Symlink(to, filepath.Join(root, link))
		default:
			err = os.WriteFile(path, []byte(name), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestLocate(t *testing.T) {
	dirs := []string{ // the topmost first
		layerDir(t, "upper", "both", "-gone", "-tree", "now>target", "lib/x"),
		layerDir(t),
		layerDir(t, "middle", "both", "dir/f", "now/f", "odd \xff\n"),
		layerDir(t, "lower", "both", "gone", "tree/f", "dir/f", "lib>usr", "usr/x", "etc/group"),
	}
	layers := []digest.Digest{"sha256:lower", "sha256:middle", "sha256:empty", "sha256:upper"}
	files := []string{"middle", "lower", "upper", "both", "gone", "tree/f", "dir/f", "dir", "now/f", "lib/x", "lower", "made", "odd \xff\n"}
	var r Result
	if err := r.locate(files, layers, dirs); err != nil {
		t.Fatal(err)
	}
	want := map[digest.Digest][]string{
		"sha256:upper":  {"upper", "both", "lib/x"},
		"sha256:empty":  nil,
		"sha256:middle": {"middle", "dir/f", "odd \xff\n"},
		"sha256:lower":  {"etc/group", "lower"},
	}
	if !reflect.DeepEqual(r.Layers, want) {
		t.Errorf("got %q, want %q", r.Layers, want)
	}
	bytes := 0
	for _, files := range want {
		bytes += len(strings.Join(files, ""))
	}
	if r.Files != 8 || r.Bytes != int64(bytes) {
		t.Errorf("%d files of %d bytes, want 8 of %d", r.Files, r.Bytes, bytes)
	}
	if err := r.locate(files, layers, []string{filepath.Join(t.TempDir(), "none")}); err == nil {
		t.Error("no error without the directories")
	}
}

// TestLocateTwice has one layer twice in an image, as a build can make it.
func TestLocateTwice(t *testing.T) {
	same := layerDir(t, "a")
	var r Result
	err := r.locate([]string{"b", "a"}, []digest.Digest{"sha256:x", "sha256:y", "sha256:x"}, []string{same, layerDir(t, "b"), same})
	want := map[digest.Digest][]string{"sha256:x": {"a"}, "sha256:y": {"b"}}
	if err != nil || !reflect.DeepEqual(r.Layers, want) {
		t.Errorf("got %q, %v", r.Layers, err)
	}
}

func TestLowerDirs(t *testing.T) {
	overlay := func(options ...string) []mount.Mount {
		return []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}
	}
	got, err := lowerDirs(overlay("workdir=/w", "upperdir=/u", "lowerdir=/2:/1", "index=off"), 2)
	if err != nil || !reflect.DeepEqual(got, []string{"/2", "/1"}) {
		t.Errorf("%q, %v", got, err)
	}
	for name, mounts := range map[string][]mount.Mount{
		"none":          nil,
		"bind":          {{Type: "bind", Options: []string{"lowerdir=/2:/1"}}},
		"too few":       overlay("lowerdir=/1"),
		"data layers":   overlay("lowerdir=/2::/1"),
		"no directory":  overlay("upperdir=/u"),
		"several mount": append(overlay("lowerdir=/2:/1"), overlay("lowerdir=/2:/1")...),
	} {
		if got, err := lowerDirs(mounts, 2); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestResultForPeople(t *testing.T) {
	r := Result{
		Layers: map[digest.Digest][]string{"sha256:a": {"x", "y"}, "sha256:b": nil},
		Files:  2, Bytes: 3 << 20, Ran: 1234567 * time.Microsecond,
	}
	if got, want := r.String(), "ran for 1.235s, until it ended with exit code 0: the 2 files that it opened, 3.0 MiB uncompressed, come first in 1 of 2 layers"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := r.Warnings(); len(got) != 0 {
		t.Errorf("warnings: %q", got)
	}
	r.Stopped = true
	if got := r.String(); !strings.Contains(got, "until it was stopped") {
		t.Error(got)
	}
	r.Stopped, r.ExitCode, r.Lost = false, 3, true
	if got := r.Warnings(); len(got) != 2 || !strings.Contains(got[0], "exit code 3") {
		t.Errorf("warnings: %q", got)
	}
	if err := incomplete(errdefs.ErrNotFound); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "ctr images pull") {
		t.Error(err)
	}
}

func TestCheckOverlay(t *testing.T) {
	for _, root := range []string{"/proc", filepath.Join(t.TempDir(), "none")} {
		if err := checkOverlay(root); err == nil || !strings.Contains(err.Error(), "PID namespace") {
			t.Errorf("%s: %v", root, err)
		}
	}
}
