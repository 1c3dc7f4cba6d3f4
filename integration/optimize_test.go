package integration

import (
	"archive/tar"
	"compress/gzip"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/image"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
)

// optimized pushes a test image that node a runs first, and gives the root CID.
func (p *pair) optimized(im *image.Image, args ...string) string {
	p.t.Helper()
	out, err := p.a.Stargz(p.t.Context(), "push", append([]string{"--optimize"}, args...)...)
	p.must(err)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 1 {
		p.t.Errorf("push of %s printed %q, not a CID alone", im.Name, out)
	}
	return lines[0]
}

// fronts are the names of files that come before the prefetch landmark, for each
// layer; nil for one that says that it has none.
func (p *pair) fronts(root string) (fronts [][]string) {
	p.t.Helper()
	client, err := kubo.New("/unix" + p.a.APISocket())
	p.must(err)
	defer client.Close()
	var target ocispec.Descriptor
	p.getJSON(client, root, &target)
	var manifest ocispec.Manifest
	p.getJSON(client, cidOf(target), &manifest)
	for _, l := range manifest.Layers {
		fronts = append(fronts, p.front(client, l))
	}
	return fronts
}

func (p *pair) front(client *kubo.Client, l ocispec.Descriptor) (names []string) {
	p.t.Helper()
	blob, err := client.Cat(p.t.Context(), cidOf(l), 0, -1)
	p.must(err)
	defer blob.Close()
	zr, err := gzip.NewReader(blob)
	p.must(err)
	for r := tar.NewReader(zr); ; {
		h, err := r.Next()
		p.must(err) // the layer's end too: it has a landmark
		switch {
		case h.Name == ".no.prefetch.landmark" && names == nil:
			return nil
		case h.Name == ".prefetch.landmark" && names != nil:
			return names
		case strings.HasSuffix(h.Name, ".landmark"):
			p.t.Fatalf("layer %s: %s after %q", l.Digest, h.Name, names)
		case h.Typeflag == tar.TypeReg:
			names = append(names, h.Name)
		}
	}
}

// nothingLeft checks that the runs for optimized pushes are gone from node a.
func (p *pair) nothingLeft() {
	p.t.Helper()
	for _, args := range [][]string{{"tasks", "ls"}, {"containers", "ls"}, {"leases", "ls"}, {"snapshots", "--snapshotter", "overlayfs", "ls"}} {
		out, err := p.a.Ctr(p.t.Context(), args...)
		p.must(err)
		if strings.Contains(out, "optimize") || args[0] == "leases" && strings.Count(strings.TrimSpace(out), "\n") > 0 {
			p.t.Errorf("ctr %s after push --optimize:\n%s", args[0], out)
		}
	}
}

// TestOptimize pushes an image with what its start reads in front, runs it on the
// other node, and compares all of it: with the race detector that takes minutes.
func TestOptimize(t *testing.T) {
	p := newPair(t, testbed.Options{Daemon: quick(t)}, testbed.DaemonConfig{})
	im := testImage(t, image.Python())
	p.must(p.a.Import(t.Context(), im))
	cid := p.optimized(im, im.Name, "--", "python3", "-c", "import json; print('recorded')")
	p.nothingLeft()

	all := []string{}
	for i, front := range p.fronts(cid) {
		t.Logf("layer %d: %d files in front", i, len(front))
		all = append(all, front...)
	}
	place := func(part string) int {
		return slices.IndexFunc(all, func(name string) bool { return strings.Contains(name, part) })
	}
	for _, part := range []string{"bin/python3.", "libc.so", "/json/__init__", "/json/decoder", "etc/passwd"} {
		if place(part) < 0 {
			t.Errorf("%s is not in front", part)
		}
	}
	if place("bin/python3.") > place("/json/__init__") {
		t.Error("the order is not that of reading")
	}
	if i := place("numpy"); i >= 0 {
		t.Errorf("%s was not read, but is in front", all[i])
	}

	before := p.received()
	p.must(p.b.Pull(t.Context(), cid))
	if logged(t, p.b, "cannot be lazy") {
		t.Error("not all of it is lazy")
	}
	out, err := p.b.Run(t.Context(), lazy, cid, "python3", "-c", "import json; print(json.dumps([1]))")
	if err != nil || strings.TrimSpace(out) != "[1]" {
		t.Errorf("the container printed %q, %v", out, err)
	}
	t.Logf("%d bytes received until the container had ended", p.received()-before)
	compareTrees(t, scanImage(t, p.a, "overlayfs", im.Name), scanImage(t, p.b, lazy, cid))
}

// TestOptimizeRuns tries the ways in which a recorded run ends, and what is
// refused.
func TestOptimizeRuns(t *testing.T) {
	p := newPair(t, testbed.Options{}, testbed.DaemonConfig{})
	im := testImage(t, image.Debian())
	p.must(p.a.Import(t.Context(), im))
	inFront := func(what, cid, name string) {
		t.Helper()
		if !slices.Contains(slices.Concat(p.fronts(cid)...), name) {
			t.Errorf("%s: %s is not in front", what, name)
		}
		p.nothingLeft()
	}
	// A container that does not end, and prints all the while.
	cid := p.optimized(im, "--optimize-timeout", "10s", im.Name, "--",
		"sh", "-c", "cat /etc/debian_version; while :; do cat /etc/hostname /etc/issue; done")
	inFront("a server", cid, "etc/debian_version")
	cid = p.optimized(im, im.Name, "--", "sh", "-c", "cat /etc/debian_version; exit 3")
	inFront("a failure", cid, "etc/debian_version")

	for what, c := range map[string]struct {
		args  []string
		parts []string
	}{
		"no such command": {[]string{im.Name, "--", "no-such-command"}, []string{"no-such-command", im.Name}},
		"a layout":        {[]string{"oci:" + im.Dir}, []string{im.Dir, "ctr images import"}},
	} {
		_, err := p.a.Stargz(t.Context(), "push", append([]string{"--optimize"}, c.args...)...)
		for _, part := range c.parts {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%s: the error lacks %q: %v", what, part, err)
			}
		}
		t.Log(err)
		p.nothingLeft()
	}
}
