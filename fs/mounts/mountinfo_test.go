package mounts

import (
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	const info = `29 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw,discard
412 29 0:57 / /run/a\040b/rootfs rw shared:2 master:3 - overlay overlay rw,lowerdir=/x/m::/x/objects::/x/fuse,upperdir=/u,workdir=/w
413 29 0:58 / /mnt rw - fuse.x none
`
	got, err := parse(strings.NewReader(info))
	if err != nil {
		t.Fatal(err)
	}
	want := []Mount{
		{"/", "ext4", "/dev/root", "rw,discard"},
		{"/run/a b/rootfs", "overlay", "overlay", "rw,lowerdir=/x/m::/x/objects::/x/fuse,upperdir=/u,workdir=/w"},
		{"/mnt", "fuse.x", "none", ""},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, bad := range []string{"x", "1 2 3 4 - ext4"} {
		if _, err := parse(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestHasLower(t *testing.T) {
	for options, want := range map[string]bool{
		"rw,lowerdir=/x/m::/x/objects::/x/fuse,upperdir=/u": true,
		"ro,lowerdir+=/x/m,datadir+=/x/objects":             true,
		"rw,lowerdir=/x/objects2:/y,upperdir=/x/objects":    false,
		"": false,
	} {
		if got := hasLower(options, "/x/objects"); got != want {
			t.Errorf("%q: %v", options, got)
		}
	}
}

// TestUnmountStale unmounts what was mounted several times, found under a name
// with a symbolic link in it too.
func TestUnmountStale(t *testing.T) {
	d := tempDir(t)
	mkdirs(t, d, "real/m")
	must(t, os.Symlink("real", d+"/link"))
	t.Cleanup(func() { must(t, UnmountStale(d+"/real/m")) })
	for range 3 {
		must(t, unix.Mount("tmpfs", d+"/real/m", "tmpfs", 0, ""))
	}
	for _, dir := range []string{d + "/real/m", d + "/link/m"} {
		if mounted, err := IsMounted(dir); !mounted || err != nil {
			t.Errorf("%s: %v, %v", dir, mounted, err)
		}
	}
	must(t, UnmountStale(d+"/link/m"))
	if left := below(t, d); len(left) > 0 {
		t.Errorf("mounted still: %q", left)
	}
	for _, dir := range []string{d + "/real/m", d, d + "/nothing", d + "/nothing/at/all"} {
		mounted, err := IsMounted(dir)
		must(t, err, Unmount(dir), UnmountStale(dir))
		if mounted {
			t.Errorf("%s counts as mounted", dir)
		}
	}
}

// TestForget checks that an object that came to an earlier data directory is
// found there, by overlays that had found it in a later one.
func TestForget(t *testing.T) {
	eachWay(t, func(t *testing.T, k *Kernel) {
		c := newContainer(t, k)
		objects, err := os.ReadDir(c.dir + "/data")
		must(t, err)
		mountOverlay(t, k, c.root, c.overlay)
		c.overlay.Upper, c.overlay.Work = "", ""
		mountOverlay(t, k, c.dir+"/view", c.overlay)
		for _, root := range []string{c.root, c.dir + "/view"} {
			has(t, root+"/file", "of the tree")
		}
		for _, o := range objects {
			write(t, c.dir+"/none/"+o.Name(), "of the same size, as if"[:11])
		}
		must(t, Forget(c.dir+"/none"))
		for _, root := range []string{c.root, c.dir + "/view"} {
			has(t, root+"/file", "of the same")
		}
		must(t, Forget(c.dir+"/nowhere"))
	})
}
