package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/image"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/treediff"
)

const lazy = testbed.SnapshotterName

// TestTreeEquality holds the lazy root of images, in both modes, against
// containerd's own unpack of what was pushed, file by file.
func TestTreeEquality(t *testing.T) {
	treeEquality(t, newTrio(t, testbed.Options{}, testbed.DaemonConfig{}), image.Debian(), image.Crafted())
}

// TestLargeTrees is the same for images that a daemon with the race detector
// would be too slow for: 50,000 names, a file of 4 GiB.
func TestLargeTrees(t *testing.T) {
	pairs := newTrio(t, testbed.Options{Daemon: quick(t)}, testbed.DaemonConfig{})
	treeEquality(t, pairs, image.Odd())
	treeEquality(t, pairs[:1], image.Huge()) // contents come the same way in both modes
}

func treeEquality(t *testing.T, pairs []*pair, recipes ...image.Recipe) {
	t.Helper()
	for _, recipe := range recipes {
		t.Run(recipe.Name, func(t *testing.T) {
			im := testImage(t, recipe)
			begin := time.Now()
			took := func(what string) {
				t.Logf("%s took %v", what, time.Since(begin).Round(time.Second))
				begin = time.Now()
			}
			cid := pairs[0].in(t).push(im)
			took("push")
			want := scanImage(t, pairs[0].a, "overlayfs", im.Name)
			took("to read it unpacked")
			for _, p := range pairs {
				t.Run(p.conf.Mode, func(t *testing.T) {
					begin = time.Now()
					p := p.in(t)
					p.must(p.b.Pull(t.Context(), cid))
					if logged(t, p.b, "cannot be lazy") {
						t.Error("not all of it is lazy")
					}
					got := scanImage(t, p.b, lazy, cid)
					took("to pull and read it")
					compareTrees(t, want, got)
					t.Logf("%d names compared", len(got))
				})
			}
		})
	}
	for _, p := range pairs {
		eventually(t, "trees that nobody uses to go", func() bool { return len(lazyMounts(t, p.b)) == 0 })
	}
}

// TestMixed pulls an image of 30 layers of which some, in any order, cannot be
// lazy: the tree is the same, and the log says why of each.
func TestMixed(t *testing.T) {
	pairs := newTrio(t, testbed.Options{}, testbed.DaemonConfig{})
	im := testImage(t, image.Crafted())
	root := pairs[0].push(im)
	want := scanImage(t, pairs[0].a, "overlayfs", im.Name)
	for _, p := range pairs {
		t.Run(p.conf.Mode, func(t *testing.T) { mixed(t, p, im, root, want) })
	}
}

func mixed(t *testing.T, p *pair, im *image.Image, root string, want treediff.Tree) {
	random := rand.New(rand.NewPCG(7, 7))
	last := len(im.Layers) - 1
	for name, normal := range map[string]func(i int) bool{
		"lowest":      func(i int) bool { return i == 0 },
		"two lowest":  func(i int) bool { return i < 2 },
		"highest":     func(i int) bool { return i == last },
		"alternating": func(i int) bool { return i%2 == 1 },
		// Lazy runs of several lengths, with normal layers below, between and above.
		"runs":   func(i int) bool { return i < 2 || i == 5 || i >= 11 && i < 14 || i == 20 || i >= last-1 },
		"random": func(int) bool { return random.IntN(3) == 0 },
	} {
		t.Run(name, func(t *testing.T) {
			p := p.in(t)
			n, before := 0, countLogged(t, p.b, "level=WARN", "cannot be lazy", "wrong TOC digest")
			cid := p.edited(root, func(i int, l *ocispec.Descriptor) {
				if normal(i) {
					n++
					l.Annotations["containerd.io/snapshot/stargz/toc.digest"] = "sha256:" + strings.Repeat("1", 64)
				}
			})
			// The next one has the same chain: of this one nothing may be left,
			// whatever became of it.
			defer func() {
				if out, err := p.b.Ctr(t.Context(), "images", "rm", "--sync", cid); err != nil {
					t.Fatal(out, err)
				}
				eventually(t, "the snapshots to go", func() bool {
					out, err := p.b.Ctr(t.Context(), "snapshots", "--snapshotter", lazy, "ls")
					return err == nil && strings.Count(strings.TrimSpace(out), "\n") == 0 // a heading
				})
			}()
			p.must(p.b.Pull(t.Context(), cid))
			// containerd's unpack leaves eStargz' own files in the root.
			got := scanImage(t, p.b, lazy, cid, ".prefetch.landmark", ".no.prefetch.landmark", "stargz.index.json")
			compareTrees(t, want, got)
			if told := countLogged(t, p.b, "level=WARN", "cannot be lazy", "wrong TOC digest") - before; told != n {
				t.Errorf("the log says of %d layers why they are not lazy; %d are not", told, n)
			}
			t.Logf("%d of %d layers are normal", n, len(im.Layers))
		})
	}
}

// TestPythonFirstOutput counts the bytes that a container needs before its first
// output, beside a full pull of the same image.
func TestPythonFirstOutput(t *testing.T) {
	p := newPair(t, testbed.Options{BitsPerSecond: 400e6}, testbed.DaemonConfig{})
	im := testImage(t, image.Python())
	cid := p.push(im)
	name := serveRegistry(t, p.a, im)

	before := p.received()
	p.must(p.b.Pull(t.Context(), cid))
	pulled := p.received()
	out, err := p.b.Run(t.Context(), lazy, cid, "python3", "-c", "print('hello')")
	if err != nil || strings.TrimSpace(out) != "hello" {
		t.Fatalf("%q, %v", out, err)
	}
	output := p.received()
	out, err = p.b.Run(t.Context(), lazy, cid, "python3", "-c", "import numpy; print(numpy.arange(4).sum())")
	if err != nil || strings.TrimSpace(out) != "6" {
		t.Fatalf("%q, %v", out, err)
	}
	withNumpy := p.received()
	if _, err := p.b.Ctr(t.Context(), "images", "pull", "--plain-http", "--snapshotter", "overlayfs", name); err != nil {
		t.Fatal(err)
	}
	full := p.received() - withNumpy
	t.Logf("of %d bytes: %d for the pull, %d until the first output, %d with numpy; a full pull %d",
		im.Size(), pulled-before, output-before, withNumpy-before, full)
	if share := float64(output-before) / float64(im.Size()); share >= 0.25 {
		t.Errorf("%.1f %% of the image's bytes until Python's first output, want under 25 %%", 100*share)
	}

	// The daemon is started again, and nobody else is there: all of it is local.
	p.restart()
	p.must(p.a.StopDaemon())
	for range 2 {
		before = p.received()
		out, err = p.b.Run(t.Context(), lazy, cid, "python3", "-c", "import numpy; print(numpy.arange(4).sum())")
		if err != nil || strings.TrimSpace(out) != "6" {
			t.Fatalf("again: %q, %v", out, err)
		}
		// ARP and the like may pass; not one block.
		if n := p.received() - before; n > 4000 {
			t.Errorf("a start of what was fetched received %d bytes", n)
		}
	}
}

// TestContainer does in a container what containers do to files that were never
// read, and has containerd make a layer of it.
func TestContainer(t *testing.T) {
	pairs := newTrio(t, testbed.Options{}, testbed.DaemonConfig{})
	cid := pairs[0].push(testImage(t, image.Debian()))
	for _, p := range pairs {
		t.Run(p.conf.Mode, func(t *testing.T) { container(t, p.in(t), cid) })
	}
}

func container(t *testing.T, p *pair, cid string) {
	p.must(p.b.Pull(t.Context(), cid))
	if out, err := p.b.Ctr(t.Context(), "images", "check", "--snapshotter", lazy); err != nil || !strings.Contains(out, cid) {
		t.Errorf("ctr images check: %v\n%s", err, out)
	}
	ctr := func(args ...string) string {
		t.Helper()
		out, err := p.b.Ctr(t.Context(), args...)
		p.must(err)
		return out
	}
	script := `set -e
cd /etc; echo more >> passwd; rm group; mv hosts.conf hosts.old 2>/dev/null || mv host.conf host.old
chmod 600 shadow 2>/dev/null || chmod 600 debian_version; ln debian_version linked; mkdir -p /new/dir; echo new > /new/dir/file
rm -rf /usr/share/doc; mkdir /usr/share/doc; echo replaced > /usr/share/doc/readme
cat host.old > /dev/null; tail -n 1 passwd; exec sleep 1000`
	ctr("run", "--detach", "--snapshotter", lazy, cid, "one", "sh", "-c", script)
	ctr("run", "--detach", "--snapshotter", lazy, cid, "two", "sleep", "1000")
	if n := len(lazyMounts(t, p.b)); n != 1 {
		t.Errorf("%d trees are mounted for two containers of one image", n)
	}
	eventually(t, "the script's end", func() bool {
		out, err := p.b.Ctr(t.Context(), "tasks", "exec", "--exec-id", "probe", "one", "cat", "/usr/share/doc/readme")
		return err == nil && strings.TrimSpace(out) == "replaced"
	})
	for path, want := range map[string]string{"/etc/debian_version": "", "/new/dir/file": "new"} {
		out := ctr("tasks", "exec", "--exec-id", "read", "one", "cat", path)
		if out == "" || want != "" && strings.TrimSpace(out) != want {
			t.Errorf("%s: %q", path, out)
		}
	}
	if out := ctr("tasks", "exec", "--exec-id", "ls", "two", "ls", "/etc"); !strings.Contains(out, "group") {
		t.Error("one container's deletion shows in another")
	}

	checkState(t, p)

	// A layer of the changes.
	if out := ctr("snapshots", "--snapshotter", lazy, "ls"); !strings.Contains(out, "one") {
		t.Errorf("snapshots: %s", out)
	}
	diff := filepath.Join(t.TempDir(), "diff")
	p.must(os.WriteFile(diff, []byte(ctr("snapshots", "--snapshotter", lazy, "diff", "--media-type", ocispec.MediaTypeImageLayer, "one")), 0o600))
	names := tarNames(t, diff)
	for _, want := range []string{"etc/passwd", "etc/.wh.group", "etc/linked", "new/dir/file", "usr/share/doc/readme", "etc/host.old", "etc/.wh.host.conf"} {
		if !names[want] {
			t.Errorf("the diff lacks %s", want)
		}
	}

	// With the daemon stopped, what was read is read; when it is back, so is
	// everything. In mode fuse a running container waits for the daemon to be
	// back in its place, which needs a keeper; new ones need none.
	p.must(p.b.StopDaemon())
	if p.conf.Mode == "kernel" {
		if out := ctr("tasks", "exec", "--exec-id", "off", "two", "ls", "/etc"); !strings.Contains(out, "group") {
			t.Errorf("with the daemon stopped: %q", out)
		}
	}
	p.must(p.b.StartDaemon(t.Context(), p.conf))
	eventually(t, "containerd to find the daemon again", func() bool {
		_, err := p.b.Ctr(t.Context(), "snapshots", "--snapshotter", lazy, "mounts", "/mnt", "two")
		return err == nil
	})
	if out, err := p.b.Run(t.Context(), lazy, cid, "ls", "/etc"); err != nil || !strings.Contains(out, "group") {
		t.Errorf("a container after the daemon's restart: %q, %v", out, err)
	}

	for _, c := range []string{"one", "two"} {
		ctr("tasks", "kill", "--signal", "KILL", c)
		eventually(t, "the end of container "+c, func() bool {
			_, err := p.b.Ctr(t.Context(), "tasks", "rm", c)
			return err == nil
		})
		if n := len(lazyMounts(t, p.b)); n != 1 {
			t.Errorf("%d trees are mounted while a container is there", n)
		}
		ctr("containers", "rm", c)
	}
	ctr("images", "rm", "--sync", cid)
	eventually(t, "the end of the tree", func() bool { return len(lazyMounts(t, p.b)) == 0 })
	for _, d := range []string{"layers", "trees"} {
		if left, err := os.ReadDir(filepath.Join(p.b.DaemonRoot(), d)); err != nil || len(left) > 0 {
			t.Errorf("left in %s of an image that was removed: %v, %v", d, left, err)
		}
	}
}

// TestStoppedDaemon reads a large file, which is opened through FUSE, in a
// container that goes on while the daemon is stopped, or killed, and started.
func TestStoppedDaemon(t *testing.T) {
	p := newPair(t, testbed.Options{}, testbed.DaemonConfig{})
	cid := p.push(testImage(t, image.Python()))
	p.must(p.b.Pull(t.Context(), cid))
	if _, err := p.b.Ctr(t.Context(), "run", "--detach", "--snapshotter", lazy, cid, "c", "sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	n := 0
	sum := func() (string, error) {
		n++
		return p.b.Ctr(t.Context(), "tasks", "exec", "--exec-id", fmt.Sprint("e", n), "c",
			"sh", "-c", "sha256sum $(find /usr/lib -type f -name 'libopenblas*')")
	}
	want, err := sum()
	p.must(err)
	if !strings.Contains(want, "libopenblas") {
		t.Fatalf("printed %q", want)
	}
	same := func(when string) {
		t.Helper()
		if got, err := sum(); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", when, got, err, want)
		}
	}
	p.must(p.a.StopDaemon())
	same("with its provider gone")
	p.must(p.b.StopDaemon())
	same("with the daemon stopped")
	p.must(p.b.StartDaemon(t.Context(), p.conf))
	same("with the daemon started again")
	p.must(p.b.KillDaemon())
	p.must(p.b.StartDaemon(t.Context(), p.conf))
	same("with the daemon killed and started again")
}

// TestErrors tries what goes wrong for people, and reads what they get.
func TestErrors(t *testing.T) {
	p := newPair(t, testbed.Options{}, testbed.DaemonConfig{FetchTimeout: 2e9})
	im := testImage(t, image.Debian())
	cid := p.push(im)
	wants := func(what string, err error, parts ...string) {
		t.Helper()
		if err == nil {
			t.Errorf("%s: no error", what)
			return
		}
		for _, part := range parts {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: the error lacks %q: %v", what, part, err)
			}
		}
	}
	const unknown = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
	wants("unknown CID", p.b.Pull(t.Context(), unknown), unknown)
	wants("no CID", p.b.Pull(t.Context(), "python"), "python")
	layer := ""
	p.edited(cid, func(_ int, l *ocispec.Descriptor) { layer = cidOf(*l) })
	wants("not an image", p.b.Pull(t.Context(), layer), layer)
	_, err := p.b.Stargz(t.Context(), "push", "no/such:image")
	wants("push of an unknown image", err, "no/such:image")

	config := filepath.Join(t.TempDir(), "config.toml")
	serve := func(toml string) error {
		p.must(os.WriteFile(config, []byte(toml), 0o600))
		_, err := p.b.Output(t.Context(), p.b.Command(t.Context(), p.Binary(), "serve", "--config", config))
		return err
	}
	wants("typo", serve("rot = '/x'"), `"rot"`, config)
	dir := t.TempDir()
	wants("socket in use", serve(fmt.Sprintf("root = %q\naddress = %q\n", dir, p.b.DaemonSocket())), p.b.DaemonSocket(), "another")
	wants("root in use", serve(fmt.Sprintf("root = %q\naddress = %q\n[api]\naddress = %q\n", p.b.DaemonRoot(), dir+"/s", dir+"/a")), p.b.DaemonRoot(), "in use")

	hidden := p.b.Command(t.Context(), "unshare", "--mount", "--propagation", "private", "sh", "-c",
		"mount -t tmpfs none /dev && exec \"$@\"", "sh", p.Binary(), "serve", "--config", config)
	p.must(os.WriteFile(config, fmt.Appendf(nil, "root = %q\naddress = %q\n[api]\naddress = %q\n[ipfs]\nlisten = []\n", dir+"/r", dir+"/s", dir+"/a"), 0o600))
	_, err = p.b.Output(t.Context(), hidden)
	wants("no FUSE", err, "/dev/fuse")
	for _, sock := range []string{p.b.DaemonSocket(), filepath.Join(p.b.Dir, "api.sock")} {
		if st, err := os.Stat(sock); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("socket %s: mode %v, %v", sock, st.Mode(), err)
		}
	}
	out, err := p.b.Stargz(t.Context(), "inspect", cid)
	if err != nil || !strings.Contains(out, layer) {
		t.Errorf("inspect: %v\n%s", err, out)
	}

	// The provider goes, in the middle of it: bounded errors, then all is well.
	p.must(p.b.Pull(t.Context(), cid))
	p.must(p.a.StopDaemon())
	_, err = p.b.Run(t.Context(), lazy, cid, "sh", "-c", "echo hello")
	wants("provider gone", err)
	if !logged(t, p.b, "level=ERROR", "a container's read failed") {
		t.Error("the log does not tell of the failed read")
	}
	p.must(p.a.StartDaemon(t.Context(), testbed.DaemonConfig{}))
	eventually(t, "the container to run when the provider is back", func() bool {
		out, err := p.b.Run(t.Context(), lazy, cid, "sh", "-c", "echo hello")
		return err == nil && strings.TrimSpace(out) == "hello"
	})
}
