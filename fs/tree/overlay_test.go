package tree

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// container is an image of a stack under a real overlay with an upper directory,
// as a container has it.
type container struct {
	root, upper, objects string
}

func startContainer(t *testing.T, stack [][]file, options string) container {
	t.Helper()
	d := tempDir(t)
	c := container{root: d + "/root", upper: d + "/upper", objects: d + "/objects"}
	writeObjects(t, c.objects, stack)
	for _, dir := range []string{c.upper, d + "/work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := buildImage(t, d+"/image", layersOf(stack), Options{}); err != nil {
		t.Fatal(err)
	}
	mountImage(t, d+"/image", d+"/tree")
	mountOverlay(t, c.root, fmt.Sprintf("lowerdir=%s/tree::%s,upperdir=%s,workdir=%s/work%s", d, c.objects, c.upper, d, options))
	return c
}

func TestContainerReadsAndWrites(t *testing.T) {
	big := strings.Repeat("0123456789abcdef", 1<<16)
	c := startContainer(t, [][]file{{
		reg("bin/big", big).chmod(0o4755), reg("etc/conf", "old").at(1700000000, 5).xattr("user.x", []byte("y")),
		hardlink("etc/link", "etc/conf"), reg("etc/gone", "x"), reg("etc/empty", ""), reg("etc/move", "m"), char("zero", 1, 5).chmod(0o666),
	}}, "")
	read := func(p, want string) {
		t.Helper()
		got, err := os.ReadFile(filepath.Join(c.root, p))
		if err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, want %d (%v)", p, len(got), len(want), err)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	read("bin/big", big)
	read("etc/conf", "old")
	read("etc/link", "old")
	read("etc/empty", "")
	var links [2]unix.Stat_t
	do(unix.Stat(c.root+"/etc/conf", &links[0]))
	do(unix.Stat(c.root+"/etc/link", &links[1]))
	if links[0].Ino != links[1].Ino || links[0].Nlink != 2 {
		t.Errorf("hard links: %+v", links)
	}

	// chmod takes the whole file along, with what else it has.
	do(os.Chmod(c.root+"/etc/conf", 0o600))
	read("etc/conf", "old")
	if got, err := os.ReadFile(c.upper + "/etc/conf"); err != nil || string(got) != "old" {
		t.Errorf("copied up: %q, %v", got, err)
	}
	if x := xattrsOf(t, c.root+"/etc/conf"); x != "user.x=79" {
		t.Errorf("attributes after the copy: %s", x)
	}
	f, err := os.OpenFile(c.root+"/bin/big", os.O_WRONLY|os.O_APPEND, 0)
	do(err)
	_, err = f.WriteString("more")
	do(err)
	do(f.Close())
	read("bin/big", big+"more")
	do(os.WriteFile(c.root+"/etc/empty", []byte("no more"), 0o644))
	read("etc/empty", "no more")
	do(os.Remove(c.root + "/etc/gone"))
	if _, err := os.Stat(c.root + "/etc/gone"); !os.IsNotExist(err) {
		t.Error(err)
	}
	do(os.Rename(c.root+"/etc/move", c.root+"/moved"))
	read("moved", "m")
	for p, want := range map[string]string{"bin/big": big, "etc/conf": "old"} {
		if got, err := os.ReadFile(filepath.Join(c.objects, key(want).String())); err != nil || string(got) != want {
			t.Errorf("object of %s was changed: %v", p, err)
		}
	}

	// The tree itself lets no one open a device; the overlay does.
	dev, err := os.Open(c.root + "/zero")
	do(err)
	b := []byte{1}
	if n, err := dev.Read(b); n != 1 || b[0] != 0 {
		t.Error("device:", b, err)
	}
	do(dev.Close())
}

func TestContainerRunsPrograms(t *testing.T) {
	program, err := os.ReadFile("/proc/self/exe") // this test, which has nothing to do then
	if err != nil {
		t.Fatal(err)
	}
	for name, options := range map[string]string{"plain": "", "metacopy on": ",metacopy=on"} {
		t.Run(name, func(t *testing.T) {
			c := startContainer(t, [][]file{{{Entry: layer.Entry{Name: "bin/test", Type: layer.Reg, Mode: 0o755}, content: string(program)}}}, options)
			if out, err := exec.Command(c.root+"/bin/test", "-test.run=^$").CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// A file whose object is missing can be looked at but not opened, and is there
// again as soon as its object is.
func TestMissingObject(t *testing.T) {
	c := startContainer(t, [][]file{{reg("a", "content")}}, "")
	object := filepath.Join(c.objects, key("content").String())
	if err := os.Rename(object, object+".away"); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(c.root + "/a"); err != nil || fi.Size() != 7 {
		t.Error(fi, err)
	}
	if _, err := os.ReadFile(c.root + "/a"); err == nil {
		t.Error("read without an object")
	}
	if err := os.Rename(object+".away", object); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(c.root + "/a"); string(got) != "content" {
		t.Errorf("%q, %v", got, err)
	}
}

// A file of several GiB reads at its far end.
func TestLargeFile(t *testing.T) {
	const size = 5 << 30
	d := tempDir(t)
	k := key("large")
	object := filepath.Join(d, "o", k.String())
	if err := os.MkdirAll(filepath.Dir(object), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(object, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(object, size-3); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(object, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("end"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := buildImage(t, d+"/image", [][]layer.Entry{{{Name: "f", Type: layer.Reg, Mode: 0o644, Size: size, Key: k}}}, Options{}); err != nil {
		t.Fatal(err)
	}
	mountImage(t, d+"/image", d+"/m")
	mountOverlay(t, d+"/root", "lowerdir="+d+"/m::"+d+"/o")
	f, err = os.Open(d + "/root/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 5)
	if _, err := f.ReadAt(b, size-5); err != nil || string(b) != "\x00\x00end" {
		t.Errorf("%q, %v", b, err)
	}
	if fi, err := f.Stat(); err != nil || fi.Size() != size {
		t.Error(fi.Size(), err)
	}
}
