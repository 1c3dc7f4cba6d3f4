package snapshotter_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ipfs-stargz/ipfs-stargz/snapshotter"
)

// suiteName tells the suite that this is overlayfs underneath, which without
// redirect_dir does not rename directories of lower layers.
const suiteName = "overlayfs"

// noLazy is the part of a node without IPFS: no layer can be lazy.
type noLazy struct{}

var errNoLazy = errors.New("this node has no lazy layers")

func (noLazy) Add(context.Context, string, string, string, snapshotter.Run) (int64, int64, error) {
	return 0, 0, errNoLazy
}
func (noLazy) Tree(context.Context, snapshotter.Run) (string, error) { return "", errNoLazy }
func (noLazy) TreeDir(snapshotter.Run) (string, error)               { return "", errNoLazy }
func (noLazy) Retain([]string, []string) error                       { return nil }
func (noLazy) MountOverlay(string, snapshotter.Overlay) error        { return errNoLazy }
func (noLazy) Unmount(string) error                                  { return nil }
func (noLazy) Find(context.Context, string, string) (string, string, error) {
	return "", "", errNoLazy
}

func open(root string, log *slog.Logger) (*snapshotter.Snapshotter, error) {
	return snapshotter.New(snapshotter.Config{
		Root: root, Lazy: noLazy{}, Mounter: noLazy{}, Finder: noLazy{},
		ResolveTimeout: time.Second, Log: log,
	})
}

// TestContainerdSuite runs containerd's own suite in process.
func TestContainerdSuite(t *testing.T) {
	testsuite.SnapshotterSuite(t, suiteName, func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := open(root, slog.New(slog.NewTextHandler(t.Output(), nil)))
		if err != nil {
			return nil, nil, err
		}
		return s, s.Close, nil
	})
}

// TestContainerdSuiteThroughProxy runs it as containerd uses us: its proxy
// snapshotter, gRPC, a unix socket.
func TestContainerdSuiteThroughProxy(t *testing.T) {
	testsuite.SnapshotterSuite(t, suiteName, func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := open(root, slog.New(slog.NewTextHandler(t.Output(), nil)))
		if err != nil {
			return nil, nil, err
		}
		sock := filepath.Join(root, "sock")
		l, err := net.Listen("unix", sock)
		if err != nil {
			return nil, nil, errors.Join(err, s.Close())
		}
		srv := grpc.NewServer()
		snapshotsapi.RegisterSnapshotsServer(srv, snapshotservice.FromSnapshotter(s))
		served := make(chan error, 1)
		go func() { served <- srv.Serve(l) }()
		conn, err := grpc.NewClient("unix://"+sock, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			srv.Stop()
			return nil, nil, errors.Join(err, s.Close())
		}
		p := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "ipfs-stargz")
		return p, func() error {
			err := conn.Close()
			srv.Stop()
			return errors.Join(err, <-served, s.Close())
		}, nil
	})
}
