package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// SnapshotterName is what the daemon's snapshotter is called in containerd.
const SnapshotterName = "ipfs-stargz"

// containerdDir finds containerd, ctr and the shim: where `make` says, or
// where it puts them.
func containerdDir(root string) (string, error) {
	dir := os.Getenv("CONTAINERD_BIN")
	if dir == "" {
		found, err := filepath.Glob(filepath.Join(root, "out", "tools", "containerd", "*"))
		if err != nil {
			return "", err
		}
		if len(found) > 0 {
			dir = found[len(found)-1]
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "containerd")); dir == "" || err != nil {
		return "", fmt.Errorf("no containerd in %q: `make test-integration` installs it, or set CONTAINERD_BIN to its folder", dir)
	}
	return dir, nil
}

// containerdConfig is everything that would be shared with other containerds
// of the machine, put into folders of this one, and our proxy plugin. Plugins
// that would open such things and that no test needs are off.
const containerdConfig = `version = 3
root = "%[1]s/root"
state = "%[1]s/state"
temp = "%[1]s/temp"
disabled_plugins = [
  "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime",
  "io.containerd.grpc.v1.cri",
  "io.containerd.image-verifier.v1.bindir",
  "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing",
]

[grpc]
  address = "%[2]s"

[ttrpc]
  address = "%[2]s.ttrpc"

[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"

[plugins."io.containerd.shim.v1.manager"]
  socket_dir = "%[1]s/s"

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "%[3]s"
  snapshotter = "overlayfs"

[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "%[3]s"
  snapshotter = "%[4]s"

[proxy_plugins."%[4]s"]
  type = "snapshot"
  address = "%[5]s"
  [proxy_plugins."%[4]s".exports]
    root = "%[6]s"
    enable_remote_snapshot_annotations = "true"
`

// StartContainerd starts the node's containerd, for the first time or again,
// and waits until it serves. extra is TOML to add to its configuration.
func (n *Node) StartContainerd(ctx context.Context, extra string) error {
	if n.containerd != nil {
		return fmt.Errorf("containerd of node %s runs already", n.Name)
	}
	dir := filepath.Join(n.Dir, "c")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	config := fmt.Sprintf(containerdConfig, dir, n.ContainerdSocket(), "linux/"+runtime.GOARCH,
		SnapshotterName, n.DaemonSocket(), n.DaemonRoot()) + extra
	path := filepath.Join(n.Dir, "containerd.toml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(n.bed.tools, "containerd"), "--config", path)
	cmd.Env = n.env()
	p, err := startProcess(ctx, n.Namespace, cmd, filepath.Join(n.Dir, "c.notify"), filepath.Join(n.Dir, "containerd.log"))
	if err != nil {
		return err
	}
	n.containerd = p
	return nil
}

// StopContainerd stops containerd and leaves the containers running, as a
// restart of it does.
func (n *Node) StopContainerd() error {
	if n.containerd == nil {
		return nil
	}
	p := n.containerd
	n.containerd = nil
	return p.stop()
}

// removeContainers kills and removes every container.
func (n *Node) removeContainers(ctx context.Context) error {
	if n.containerd == nil {
		return nil
	}
	tasks, err := n.Ctr(ctx, "tasks", "ls", "-q")
	if err != nil {
		return err
	}
	var errs []error
	for id := range strings.FieldsSeq(tasks) {
		_, err := n.Ctr(ctx, "tasks", "rm", "--force", id)
		errs = append(errs, err)
	}
	containers, err := n.Ctr(ctx, "containers", "ls", "-q")
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for id := range strings.FieldsSeq(containers) {
		_, err := n.Ctr(ctx, "containers", "rm", id)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// removeImages removes every image, and waits until the daemon has nothing
// mounted any more but what it serves itself: containerd tells it in its own
// time what is not needed.
func (n *Node) removeImages(ctx context.Context) error {
	if n.containerd == nil || n.daemon == nil {
		return nil
	}
	images, err := n.Ctr(ctx, "images", "ls", "-q")
	if err != nil {
		return err
	}
	if names := strings.Fields(images); len(names) > 0 {
		if _, err := n.Ctr(ctx, append([]string{"images", "rm", "--sync"}, names...)...); err != nil {
			return err
		}
	}
	for {
		left, err := n.daemonMounts()
		if err != nil || len(left) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the daemon of node %s has mounts for nobody: %v", n.Name, left)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// daemonMounts are the mounts that the daemon made for snapshots: where it serves
// what is missing, "fuse" or "fuse-names", is none.
func (n *Node) daemonMounts() (left []Mount, err error) {
	mounts, err := Mounts()
	for _, m := range mounts {
		if strings.HasPrefix(m.Point, n.DaemonRoot()+"/") && !strings.HasPrefix(m.Point, filepath.Join(n.DaemonRoot(), "fuse")) {
			left = append(left, m)
		}
	}
	return left, err
}

// ContainerdSocket is where the node's containerd answers.
func (n *Node) ContainerdSocket() string { return filepath.Join(n.Dir, "c.sock") }
