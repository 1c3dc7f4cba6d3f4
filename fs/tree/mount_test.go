package tree

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
)

func TestMount(t *testing.T) {
	d := tempDir(t)
	image, one, two := d+"/image", d+"/one", d+"/two"
	if _, err := buildImage(t, image, layersOf([][]file{{reg("a", "1").chmod(0o4755), char("null", 1, 3)}}), Options{}); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{one, two} {
		mountImage(t, image, target)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(one, &st); err != nil {
		t.Fatal(err)
	}
	const flags = unix.ST_RDONLY | unix.ST_NODEV | unix.ST_NOSUID | unix.ST_NOEXEC | unix.ST_NOATIME
	if st.Type != unix.EROFS_SUPER_MAGIC_V1 || st.Flags&flags != flags {
		t.Errorf("type %x, flags %x", st.Type, st.Flags)
	}
	// The file may go while it is mounted.
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Lstat(two + "/a"); err != nil || fi.Size() != 1 {
		t.Error(fi, err)
	}
	if _, err := os.Open(one + "/null"); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a device can be opened: %v", err)
	}
	// Unmounting is for names: what is open goes on.
	f, err := os.Open(one + "/a")
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmount(one); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(one + "/a"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := f.Stat(); err != nil {
		t.Error(err)
	}
	f.Close()
	for _, p := range []string{one, d, d + "/nothing"} {
		if err := Unmount(p); err != nil {
			t.Errorf("unmounting what is not mounted: %v", err)
		}
	}
}

func TestMountErrors(t *testing.T) {
	d := tempDir(t)
	if err := os.WriteFile(d+"/junk", make([]byte, 8192), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := buildImage(t, d+"/image", nil, Options{}); err != nil {
		t.Fatal(err)
	}
	damaged, err := os.ReadFile(d + "/image")
	if err != nil {
		t.Fatal(err)
	}
	damaged[erofs.SuperOffset+40] ^= 1
	if err := os.WriteFile(d+"/damaged", damaged, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ image, target, want string }{
		{d + "/junk", d, "remove it to have it built again"},
		{d + "/damaged", d, "remove it to have it built again"},
		{d + "/nothing", d, "no such file"},
		{d + "/image", d + "/nothing", "no such file"},
	} {
		err := Mount(c.image, c.target)
		if err == nil {
			t.Errorf("%s: no error", c.image)
			if err := Unmount(c.target); err != nil {
				t.Error(err)
			}
			continue
		}
		for _, part := range []string{c.image, c.target, c.want} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("error %q does not say %q", err, part)
			}
		}
	}
	for err, want := range map[error]error{unix.ENODEV: ErrNoEROFS, unix.ENOTBLK: ErrNoFileMount} {
		if got := mountError(err); !errors.Is(got, want) || !errors.Is(got, err) {
			t.Errorf("%v becomes %v", err, got)
		}
	}
}
