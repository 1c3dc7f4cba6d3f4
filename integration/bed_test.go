package integration

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/image"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/registry"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/treediff"
)

// newBed makes a testbed that goes with the test. Processes and mounts that
// are left once everything was stopped are an error of the test; when the test
// fails it prints the logs.
func newBed(t *testing.T, o testbed.Options) *testbed.Bed {
	t.Helper()
	bed, err := testbed.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(bed.Logs())
		}
		if err := bed.Close(); err != nil {
			t.Error(err)
		}
	})
	return bed
}

// testImage gives a test image, built if need be.
func testImage(t *testing.T, r image.Recipe) *image.Image {
	t.Helper()
	store, err := testbed.Images()
	if err != nil {
		t.Fatal(err)
	}
	im, err := store.Get(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// serveRegistry serves an image as a registry on a node and gives the name by
// which it is pulled from there.
func serveRegistry(t *testing.T, n *testbed.Node, im *image.Image) string {
	t.Helper()
	l, err := n.Namespace.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: registry.Handler("image", im)}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return l.Addr().String() + "/image:latest"
}

// scanImage reads the tree of an image as a snapshotter gives it. The time of
// the root folder is left out: containerd ignores what a layer says of it. So
// are the paths in ignore, relative to the root.
func scanImage(t *testing.T, n *testbed.Node, snapshotter, name string, ignore ...string) treediff.Tree {
	t.Helper()
	dir, unmount, err := n.MountImage(t.Context(), snapshotter, name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unmount(); err != nil {
			t.Error(err)
		}
	}()
	tree, err := treediff.Scan(dir, ignore...)
	if err != nil {
		t.Fatal(err)
	}
	root := tree["."]
	root.ModTime = time.Time{}
	tree["."] = root
	return tree
}

// compareTrees fails the test with what differs, but not with thousands of
// lines.
func compareTrees(t *testing.T, want, got treediff.Tree) {
	t.Helper()
	lines := treediff.Diff(want, got)
	const most = 50
	for i, line := range lines {
		if i == most {
			t.Errorf("… and %d more", len(lines)-most)
			break
		}
		t.Error(line)
	}
}
