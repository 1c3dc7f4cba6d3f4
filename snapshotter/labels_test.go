package snapshotter_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/ipfs-stargz/ipfs-stargz/snapshotter"
)

// anyLazy takes every layer, and keeps what the last one was called.
type anyLazy struct {
	noLazy
	called string
}

func (l *anyLazy) Add(_ context.Context, _, _, blobDigest string, _ snapshotter.Run) (int64, int64, error) {
	l.called = blobDigest
	return 0, 0, nil
}

// TestBlobDigest checks that a layer is told what its image calls it.
func TestBlobDigest(t *testing.T) {
	var lazy anyLazy
	s, err := snapshotter.New(snapshotter.Config{
		Root: t.TempDir(), Lazy: &lazy, Mounter: lazy, Finder: lazy,
		ResolveTimeout: time.Minute, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for target, label := range map[string]string{
		"sha256:1": "containerd.io/snapshot/cri.layer-digest",
		"sha256:2": "containerd.io/snapshot/remote/stargz.digest",
		"sha256:3": "",
	} {
		labels := map[string]string{snapshots.LabelSnapshotRef: target, "containerd.io/snapshot/ipfs-stargz.cid": "one"}
		want := ""
		if label != "" {
			want = target
			labels[label] = want
		}
		if _, err := s.Prepare(t.Context(), "key "+target, "", snapshots.WithLabels(labels)); !errdefs.IsAlreadyExists(err) {
			t.Errorf("%s: %v", label, err)
		}
		if lazy.called != want {
			t.Errorf("%s: the layer is called %q, want %q", label, lazy.called, want)
		}
	}
}
