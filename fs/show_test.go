package fs_test

import (
	"bytes"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/fs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/mounts"
)

// TestMode checks that the mode that runs is told and logged with its reason,
// and that one that nobody knows is refused.
func TestMode(t *testing.T) {
	var s store
	var log bytes.Buffer
	cfg := fs.Config{
		Root: t.TempDir(), Open: s.open, Mode: mounts.ModeKernel, LookupPatience: time.Second,
		Log: slog.New(slog.NewTextHandler(&log, nil)),
	}
	f, err := fs.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	c, err := f.State()
	if err != nil {
		t.Fatal(err)
	}
	want, err := fs.ChooseMode(t.Context(), cfg.Root, cfg.Mode)
	if err != nil {
		t.Fatal(err)
	}
	if c.Mode != mounts.ModeKernel || c.Why != want.Kernel.String() {
		t.Errorf("mode %q, because %q", c.Mode, c.Why)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if l := log.String(); !strings.Contains(l, "lazy layers are mounted by kernel") || !strings.Contains(l, c.Why) {
		t.Errorf("log: %s", l)
	}
	cfg.Mode = "fast"
	if _, err := fs.New(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "fast") {
		t.Errorf("an unknown mode: %v", err)
	}
}

// TestMountOverlayOnce checks that an overlay that is mounted already is left
// alone, as after a restart of the daemon.
func TestMountOverlayOnce(t *testing.T) {
	var s store
	toc := s.add(t, "one", file{name: "a", body: "hello"})
	root := t.TempDir()
	f := running(t, root, &s)
	add(t, f, "one", toc)
	tree, err := f.Tree(t.Context(), fs.Run{CIDs: []string{"one"}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	target := dir + "/m"
	t.Cleanup(func() {
		if err := mounts.UnmountStale(target); err != nil {
			t.Error(err)
		}
	})
	for range 2 {
		if err := f.MountOverlay(target, fs.Overlay{Lower: []string{tree}}); err != nil {
			t.Fatal(err)
		}
	}
	mustRead(t, target+"/a", "hello")
	if n := mountsBelow(t, dir); n != 1 {
		t.Errorf("mounted %d times", n)
	}
	for range 2 {
		if err := f.Unmount(target); err != nil {
			t.Error(err)
		}
	}
	if n := mountsBelow(t, dir); n != 0 {
		t.Errorf("mounted %d times after it was unmounted", n)
	}
}

// TestModeChanges starts a node again in another mode: who mounts a container's
// overlay next finds its names, whoever served them before.
func TestModeChanges(t *testing.T) {
	var s store
	toc := s.add(t, "one", file{name: "read", body: "hello"}, file{name: "unread", body: random(1, 300_000)})
	root, target := t.TempDir(), t.TempDir()+"/m"
	t.Cleanup(func() {
		if err := mounts.UnmountStale(target); err != nil {
			t.Error(err)
		}
	})
	for i, mode := range []string{mounts.ModeFUSE, mounts.ModeKernel, mounts.ModeFUSE, fuseAlone, mounts.ModeKernel, fuseAlone} {
		s.mode = mode
		f := start(t, root, &s)
		if i == 0 {
			add(t, f, "one", toc)
		}
		tree, err := f.Tree(t.Context(), fs.Run{CIDs: []string{"one"}})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := f.MountOverlay(target, fs.Overlay{Lower: []string{tree}}); err != nil {
				t.Fatal(err)
			}
			mustRead(t, target+"/read", "hello")
		}
		if i > 3 {
			mustRead(t, target+"/unread", random(1, 300_000))
		}
		if n := mountsBelow(t, filepath.Dir(target)); n != 1 {
			t.Errorf("%s: mounted %d times", mode, n)
		}
		if i == 5 {
			if err := f.Unmount(target); err != nil {
				t.Error(err)
			}
			stop(t, f)
			break
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}
