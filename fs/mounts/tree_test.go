package mounts

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMountTree mounts an image twice, takes its file away, and unmounts what
// is open.
func TestMountTree(t *testing.T) {
	eachWay(t, func(t *testing.T, k *Kernel) {
		d := tempDir(t)
		image, one, two := d+"/image", d+"/one", d+"/two"
		buildTree(t, image, d+"/data", map[string]string{"a": "1"})
		for _, target := range []string{one, two} {
			mountTree(t, k, image, target)
		}
		st := statfs(t, one)
		const flags = unix.ST_RDONLY | unix.ST_NODEV | unix.ST_NOSUID | unix.ST_NOEXEC | unix.ST_NOATIME
		if st.Type != unix.EROFS_SUPER_MAGIC_V1 || st.Flags&flags != flags {
			t.Errorf("type %x, flags %x", st.Type, st.Flags)
		}
		if n := len(loops(t, d)); (n > 0) != (k.Trees == FromLoop) {
			t.Errorf("%d loop devices", n)
		}
		must(t, os.Remove(image))
		if fi, err := os.Lstat(two + "/a"); err != nil || fi.Size() != 1 {
			t.Error(fi, err)
		}
		if _, err := os.Open(one + "/null"); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("a device can be opened: %v", err)
		}
		f, err := os.Open(one + "/a")
		must(t, err)
		must(t, Unmount(one))
		if _, err := os.Lstat(one + "/a"); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		if _, err := f.Stat(); err != nil {
			t.Error(err)
		}
		must(t, f.Close(), Unmount(two))
		waitNoLoops(t, d)
	})
}

func TestMountTreeErrors(t *testing.T) {
	eachWay(t, func(t *testing.T, k *Kernel) {
		d := tempDir(t)
		must(t, os.WriteFile(d+"/junk", make([]byte, 8192), 0o644))
		buildTree(t, d+"/image", d+"/data", nil)
		damaged, err := os.ReadFile(d + "/image")
		must(t, err)
		damaged[1024+40] ^= 1 // in the superblock
		must(t, os.WriteFile(d+"/damaged", damaged, 0o644))
		mkdirs(t, d, "m")
		t.Cleanup(func() { must(t, UnmountStale(d+"/m")) })
		for _, c := range []struct{ image, target, want string }{
			{d + "/junk", d + "/m", "remove it to have it built again"},
			{d + "/damaged", d + "/m", "remove it to have it built again"},
			{d + "/nothing", d + "/m", "no such file"},
			{d + "/image", d + "/nothing", "no such file"},
		} {
			err := k.MountTree(c.image, c.target)
			if err == nil {
				t.Errorf("%s: no error", c.image)
				continue
			}
			for _, part := range []string{c.image, c.target, c.want} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %q", err, part)
				}
			}
		}
		waitNoLoops(t, d)
	})
	for err, want := range map[error]string{unix.ENODEV: "load the module erofs", unix.ENOTBLK: "Linux 6.12", unix.EPERM: "CAP_SYS_ADMIN"} {
		if got := explain(err); !errors.Is(got, err) || !strings.Contains(got.Error(), want) {
			t.Errorf("%v becomes %v", err, got)
		}
	}
}

// TestStacking shows what loop devices do besides helping old kernels: an
// image on overlayfs can be mounted through them, and they do not count among the
// file systems on one another that the kernel allows.
func TestStacking(t *testing.T) {
	k := &Kernel{Trees: FromLoop, Data: SeparateMetacopy, Plain: Separate}
	c := newContainer(t, k)
	mountOverlay(t, k, c.root, c.overlay)
	mountOverlay(t, k, c.dir+"/nested", Overlay{Lower: []string{c.root}})
	has(t, c.dir+"/nested/file", "of the tree")

	buildTree(t, c.root+"/image", c.dir+"/data", map[string]string{"a": "1"})
	mountTree(t, k, c.root+"/image", c.dir+"/on-overlayfs")
	mountOverlay(t, k, c.dir+"/root2", Overlay{Lower: []string{c.dir + "/on-overlayfs"}, Data: []string{c.dir + "/data"}})
	has(t, c.dir+"/root2/a", "1")
	must(t, Unmount(c.dir+"/root2"), Unmount(c.dir+"/on-overlayfs"), Unmount(c.dir+"/nested"))
}
