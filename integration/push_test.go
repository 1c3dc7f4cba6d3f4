package integration

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/image"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
)

// TestPushStaysOCI pushes one image from each place it can be in, and has other
// tools read what was pushed.
func TestPushStaysOCI(t *testing.T) {
	p := newPair(t, testbed.Options{}, testbed.DaemonConfig{})
	im := testImage(t, image.Debian())
	archive := filepath.Join(t.TempDir(), "pushed.tar")
	cid := p.push(im, "--output", archive)
	for what, source := range map[string]string{
		"an OCI layout":                        im.Dir,
		"an OCI layout, by name of its kind":   "oci:" + im.Dir,
		"what was pushed, with layers as kept": "oci-archive:" + archive,
	} {
		again, err := p.a.Push(t.Context(), source)
		if err != nil || again != cid {
			t.Errorf("push of %s: %s, %v, want %s", what, again, err, cid)
		}
	}

	for _, args := range [][]string{
		{"inspect", "oci-archive:" + archive},
		{"copy", "oci-archive:" + archive, "dir:" + t.TempDir()},
	} {
		if out, err := exec.CommandContext(t.Context(), "skopeo", args...).CombinedOutput(); err != nil {
			t.Errorf("skopeo %s: %v\n%s", args[0], err, out)
		}
	}
	if _, err := p.b.Ctr(t.Context(), "images", "import", "--local", "--no-unpack", "--index-name", "local.test/pushed:1", archive); err != nil {
		t.Fatal(err)
	}
	want := scanImage(t, p.a, "overlayfs", im.Name)
	compareTrees(t, want, scanImage(t, p.b, "overlayfs", "local.test/pushed:1", ".prefetch.landmark", ".no.prefetch.landmark", "stargz.index.json"))

	// A pull under another name, and what there is to see of it.
	p.must(p.b.Pull(t.Context(), cid, "--name", "local.test/pulled:1"))
	out, err := p.b.Run(t.Context(), lazy, "local.test/pulled:1", "cat", "/etc/debian_version")
	if err != nil || strings.TrimSpace(out) == "" {
		t.Errorf("the container printed %q: %v", out, err)
	}
	report, err := p.b.Stargz(t.Context(), "inspect", cid)
	if err != nil || !strings.Contains(report, cid) || !strings.Contains(report, "estargz") {
		t.Errorf("inspect: %v\n%s", err, report)
	}
	t.Log(report)
}
