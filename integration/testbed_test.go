// Package integration tests the whole of it on real nodes: containerd, runc,
// the kernel's file systems, network namespaces. It needs root.
//
// This file tests what the other tests stand on, without our daemon.
package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/image"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/treediff"
)

// TestTestbedPull pulls the Python image from a registry on one node to
// another, over a shaped link, and runs it there.
func TestTestbedPull(t *testing.T) {
	im := testImage(t, image.Python())
	bed := newBed(t, testbed.Options{Nodes: 2, BitsPerSecond: 400e6})
	a, b := bed.Nodes[0], bed.Nodes[1]
	if err := b.StartContainerd(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	name := serveRegistry(t, a, im)
	before, err := b.Namespace.Traffic()
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if _, err := b.Ctr(t.Context(), "images", "pull", "--plain-http", "--snapshotter", "overlayfs", name); err != nil {
		t.Fatal(err)
	}
	after, err := b.Namespace.Traffic()
	if err != nil {
		t.Fatal(err)
	}
	moved := after.Sub(before).Received
	t.Logf("pulled %d bytes in %v, %d on the wire", im.Size(), time.Since(begin), moved)
	if moved < im.Size() || moved > im.Size()*11/10 {
		t.Errorf("an image of %d bytes was pulled with %d on the wire", im.Size(), moved)
	}
	for _, args := range [][]string{nil, {"python3", "-c", "import numpy; print('numpy', numpy.ones(3).sum())"}} {
		out, err := b.Run(t.Context(), "overlayfs", name, args...)
		if err != nil || !strings.HasPrefix(out, "numpy ") {
			t.Errorf("the container printed %q: %v", out, err)
		}
	}
}

// TestTestbedTrees unpacks the crafted image in two ways that share little,
// containerd's overlayfs and native snapshotters: its layers mean one tree.
func TestTestbedTrees(t *testing.T) {
	im := testImage(t, image.Crafted())
	bed := newBed(t, testbed.Options{Nodes: 1})
	n := bed.Nodes[0]
	if err := n.StartContainerd(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if err := n.Import(t.Context(), im); err != nil {
		t.Fatal(err)
	}
	trees := map[string]treediff.Tree{}
	for _, snapshotter := range []string{"overlayfs", "native"} {
		tree := scanImage(t, n, snapshotter, im.Name)
		// The native snapshotter copies a lower layer without its folders' times.
		for name, node := range tree {
			if node.Mode&unix.S_IFMT == unix.S_IFDIR {
				node.ModTime = time.Time{}
				tree[name] = node
			}
		}
		trees[snapshotter] = tree
	}
	compareTrees(t, trees["overlayfs"], trees["native"])
	if len(trees["native"]) < 200 {
		t.Errorf("the image has %d names only", len(trees["native"]))
	}
}

// TestTestbedSweep breaks off in the middle of everything, with a container
// running, and wants nothing left by the sweep.
func TestTestbedSweep(t *testing.T) {
	im := testImage(t, image.Debian())
	bed, err := testbed.New(testbed.Options{Nodes: 1})
	if err != nil {
		t.Fatal(err)
	}
	// It has much to complain of after the sweep.
	defer func() { _ = bed.Close() }()
	n := bed.Nodes[0]
	if err := n.StartContainerd(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if err := n.Import(t.Context(), im); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Ctr(t.Context(), "run", "--detach", im.Name, "sleeper", "sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	records := t.TempDir()
	if err := os.Symlink(bed.Dir, filepath.Join(records, filepath.Base(bed.Dir))); err != nil {
		t.Fatal(err)
	}
	took, err := testbed.Sweep(records)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"containerd --config", "containerd-shim-runc-v2", "sleep 1000", "overlay", bed.Dir} {
		if !strings.Contains(strings.Join(took, "\n"), want) {
			t.Errorf("the sweep did not find %s: %q", want, took)
		}
	}
	if again, err := testbed.Sweep(records); len(again) > 0 || err != nil {
		t.Errorf("a second sweep finds %q, %v", again, err)
	}
	groups, err := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Base(bed.Dir) + "*")
	if len(groups) > 0 || err != nil {
		t.Errorf("control groups left: %q, %v", groups, err)
	}
}

// TestTestbedRestart ends containerd while a container runs; the next one
// finds it.
func TestTestbedRestart(t *testing.T) {
	im := testImage(t, image.Debian())
	bed := newBed(t, testbed.Options{Nodes: 1})
	n := bed.Nodes[0]
	if err := n.StartContainerd(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if err := n.Import(t.Context(), im); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Ctr(t.Context(), "run", "--detach", im.Name, "sleeper", "sleep", "1000"); err != nil {
		t.Fatal(err)
	}
	if err := n.StopContainerd(); err != nil {
		t.Fatal(err)
	}
	if err := n.StartContainerd(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	out, err := n.Ctr(t.Context(), "tasks", "exec", "--exec-id", "e", "sleeper", "echo", "still here")
	if err != nil || strings.TrimSpace(out) != "still here" {
		t.Errorf("exec in the container: %q, %v", out, err)
	}
}

// TestTestbedBroken wants a readable error, and nothing left, of a containerd
// that does not start.
func TestTestbedBroken(t *testing.T) {
	bed := newBed(t, testbed.Options{Nodes: 1})
	err := bed.Nodes[0].StartContainerd(t.Context(), "this is no TOML")
	if err == nil || !strings.Contains(err.Error(), "toml") {
		t.Errorf("starting with a broken configuration: %v", err)
	}
}
