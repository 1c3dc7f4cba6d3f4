package mounts

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestContainer does in an overlay what containers do, with and without a
// normal layer below the tree.
func TestContainer(t *testing.T) {
	eachWay(t, func(t *testing.T, k *Kernel) {
		for _, over := range []bool{false, true} {
			c := newContainer(t, k)
			if over {
				write(t, c.dir+"/normal/normal", "normal")
				write(t, c.dir+"/normal/file", "hidden")
				c.overlay.Lower, c.overlay.OverNormal = append(c.overlay.Lower, c.dir+"/normal"), true
			}
			mountOverlay(t, k, c.root, c.overlay)
			has(t, c.root+"/file", "of the tree")
			must(t, os.Chmod(c.root+"/file", 0o600))
			has(t, c.root+"/file", "of the tree")
			must(t, os.Rename(c.root+"/file", c.root+"/renamed"))
			has(t, c.root+"/renamed", "of the tree")
			write(t, c.root+"/new/file", "new")
			must(t, os.Remove(c.root+"/other"))
			if _, err := os.Stat(c.root + "/other"); !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
			dev, err := os.Open(c.root + "/null")
			must(t, err, dev.Close())
			if over {
				has(t, c.root+"/normal", "normal")
			}
			// Only over a normal layer, or where the kernel wants it so, a chmod
			// leaves the contents where they are.
			_, err = unix.Getxattr(c.upper+"/renamed", "trusted.overlay.metacopy", nil)
			if want := k.Data == Separate && !over; errors.Is(err, unix.ENODATA) != want {
				t.Errorf("over a normal layer: %v; contents were copied up, said by %v", over, err)
			}

			// A read-only one over the same, which says so.
			c.overlay.Upper, c.overlay.Work = "", ""
			mountOverlay(t, k, c.dir+"/view", c.overlay)
			has(t, c.dir+"/view/file", "of the tree")
			if err := os.WriteFile(c.dir+"/view/file", nil, 0o644); !errors.Is(err, unix.EROFS) {
				t.Errorf("write to a view: %v", err)
			}
		}
	})
}

// TestPlain mounts overlays without data-only layers.
func TestPlain(t *testing.T) {
	eachWay(t, func(t *testing.T, k *Kernel) {
		d := tempDir(t)
		mkdirs(t, d, "upper", "work")
		write(t, d+"/a/a", "a")
		write(t, d+"/b/a", "hidden")
		write(t, d+"/b/b", "b")
		lower := []string{d + "/a", d + "/b"}
		mountOverlay(t, k, d+"/root", Overlay{Lower: lower, Upper: d + "/upper", Work: d + "/work", OverNormal: true})
		mountOverlay(t, k, d+"/view", Overlay{Lower: lower})
		for _, root := range []string{d + "/root", d + "/view"} {
			has(t, root+"/a", "a")
			has(t, root+"/b", "b")
		}
		mountOverlay(t, k, d+"/one", Overlay{Lower: lower[1:]})
		has(t, d+"/one/b", "b")
		if err := os.Remove(d + "/one/b"); !errors.Is(err, unix.EROFS) {
			t.Errorf("remove from a view: %v", err)
		}
		for _, m := range []string{"root", "view", "one"} {
			mounts, err := Mounts()
			must(t, err)
			for _, x := range mounts {
				if x.Dir == d+"/"+m && strings.Contains(x.Options, "metacopy=on") {
					t.Errorf("options of %s: %s", m, x.Options)
				}
			}
		}
	})
}

// TestManyLayers lays a tree over 99 normal layers, and over as many with long
// names.
func TestManyLayers(t *testing.T) {
	eachWay(t, func(t *testing.T, k *Kernel) {
		c := newContainer(t, k)
		c.overlay.OverNormal = true
		lower := func(name string) []string {
			dirs := []string{c.tree}
			for i := range 99 {
				dir := fmt.Sprintf("%s/%s%d", c.dir, name, i)
				write(t, fmt.Sprintf("%s/file%d", dir, i), dir)
				dirs = append(dirs, dir)
			}
			return dirs
		}
		c.overlay.Lower = lower("s")
		mountOverlay(t, k, c.root, c.overlay)
		has(t, c.root+"/file", "of the tree")
		has(t, c.root+"/file98", c.dir+"/s98")
		must(t, Unmount(c.root))

		c.overlay.Lower = lower(strings.Repeat("long", 20))
		err := k.MountOverlay(c.root, c.overlay)
		switch {
		case k.Data != OneString:
			must(t, err)
			has(t, c.root+"/file98", c.overlay.Lower[99])
			must(t, Unmount(c.root))
		case err == nil:
			t.Error("options over a page were taken")
			must(t, Unmount(c.root))
		case !strings.Contains(err.Error(), "4095") || !strings.Contains(err.Error(), "shorter root"):
			t.Errorf("options over a page: %v", err)
		}
	})
}

// TestStrangePaths names layers by characters that mean something in options.
func TestStrangePaths(t *testing.T) {
	eachWay(t, func(t *testing.T, k *Kernel) {
		d := filepath.Join(tempDir(t), `a:b,c\d e=f`)
		dirs := mkdirs(t, d, "upper", "work", "root", `t:,\`, `n:,\`)
		write(t, dirs[4]+"/normal", "normal")
		buildTree(t, d+"/image", d+`/o:,\`, map[string]string{"file": "of the tree"})
		mountTree(t, k, d+"/image", dirs[3])
		mountOverlay(t, k, dirs[2], Overlay{
			Lower: dirs[3:], Data: []string{d + `/o:,\`}, Upper: dirs[0], Work: dirs[1], OverNormal: true,
		})
		has(t, dirs[2]+"/file", "of the tree")
		has(t, dirs[2]+"/normal", "normal")
		write(t, dirs[2]+"/new", "new")
		has(t, dirs[0]+"/new", "new")
	})
}

// TestOverlayErrors checks that what cannot be mounted is named, and leaves
// nothing.
func TestOverlayErrors(t *testing.T) {
	eachWay(t, func(t *testing.T, k *Kernel) {
		c := newContainer(t, k)
		mappings := []IDMap{{0, 100_000, 1}}
		for what, o := range map[string]Overlay{
			"no lower directory":  {Lower: []string{c.dir + "/nothing"}, Data: c.overlay.Data},
			"no upper directory":  {Lower: c.overlay.Lower, Data: c.overlay.Data, Upper: c.dir + "/nothing", Work: c.overlay.Work},
			"users alone mapped":  {Lower: c.overlay.Lower, Data: c.overlay.Data, UIDs: mappings},
			"nothing to map":      {Lower: []string{c.dir + "/nothing"}, Data: c.overlay.Data, UIDs: mappings, GIDs: mappings},
			"nothing mapped":      {Lower: c.overlay.Lower, Data: c.overlay.Data, UIDs: []IDMap{{}}, GIDs: mappings},
			"mapped, and no data": {Lower: c.overlay.Lower, Data: []string{c.dir + "/nothing"}, UIDs: mappings, GIDs: mappings},
		} {
			if err := k.MountOverlay(c.root, o); err == nil || !strings.Contains(err.Error(), c.root) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := k.MountOverlay(c.dir+"/nothing", c.overlay); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("no target: %v", err)
		}
		if m := below(t, c.dir); len(m) != 1 {
			t.Errorf("mounted: %q", m)
		}
	})
}

// TestBusy unmounts an overlay, and then its tree, while a file is open.
func TestBusy(t *testing.T) {
	eachWay(t, func(t *testing.T, k *Kernel) {
		c := newContainer(t, k)
		mountOverlay(t, k, c.root, c.overlay)
		f, err := os.Open(c.root + "/file")
		must(t, err)
		defer f.Close()
		must(t, Unmount(c.root), Unmount(c.tree))
		if m := below(t, c.dir); len(m) > 0 {
			t.Errorf("mounted still: %q", m)
		}
		b := make([]byte, 11)
		if _, err := f.ReadAt(b, 0); err != nil || string(b) != "of the tree" {
			t.Errorf("%q, %v", b, err)
		}
		must(t, f.Close())
		waitNoLoops(t, c.dir)
	})
}

// TestMappedOwners runs a process in a user namespace in a container of its
// own: there all belongs to root, and what it writes to root outside's user.
func TestMappedOwners(t *testing.T) {
	const owner = 100_000
	maps := []IDMap{{0, owner, 65536}}
	eachWay(t, func(t *testing.T, k *Kernel) {
		c := newContainer(t, k)
		write(t, c.dir+"/normal/normal", "normal")
		c.overlay.Lower, c.overlay.OverNormal = append(c.overlay.Lower, c.dir+"/normal"), true
		c.overlay.UIDs, c.overlay.GIDs = maps, maps
		must(t, os.Chown(c.upper, owner, owner))
		mountOverlay(t, k, c.root, c.overlay)
		has(t, c.root+"/file", "of the tree")
		if m := below(t, c.dir); len(m) != 2 {
			t.Errorf("mounted: %q", m)
		}

		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "/bin/sh", "-ec", `stat -c '%u:%g' file normal && cat file && chmod 600 file && echo more >> normal && echo new > new`)
		cmd.Dir, cmd.WaitDelay = c.root, 10*time.Second
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: idMappings(maps), GidMappings: idMappings(maps),
			Credential: &syscall.Credential{},
		}
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != "0:0\n0:0\nof the tree" {
			t.Errorf("inside: %q, %v", out, err)
		}
		for _, name := range []string{"file", "normal", "new"} {
			for _, dir := range []string{c.root, c.upper} {
				var st unix.Stat_t
				if err := unix.Stat(filepath.Join(dir, name), &st); err != nil || st.Uid != owner || st.Gid != owner {
					t.Errorf("%s in %s: %d:%d, %v", name, dir, st.Uid, st.Gid, err)
				}
			}
		}
		has(t, c.root+"/normal", "normalmore\n")
		has(t, c.dir+"/normal/normal", "normal")
	})
}
