package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/image"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testnet"
)

// Node is a machine of the bed: a network namespace with a containerd and a
// daemon in it.
type Node struct {
	Name      string
	Dir       string
	Namespace *testnet.Namespace

	bed        *Bed
	containerd *process
	daemon     *process
	containers atomic.Int64 // for names
}

// ContainerdNamespace is the namespace in containerd. It is the node's own,
// since runc and the control groups keep containers by it, for the whole
// machine.
func (n *Node) ContainerdNamespace() string { return n.bed.id + "-" + n.Name }

// env is the environment of all that runs on the node.
func (n *Node) env() []string {
	path := os.Getenv("PATH")
	if n.bed.tools != "" {
		path = n.bed.tools + ":" + path
	}
	return append(os.Environ(),
		"PATH="+path,
		"CONTAINERD_ADDRESS="+n.ContainerdSocket(),
		"CONTAINERD_NAMESPACE="+n.ContainerdNamespace(),
		markVariable+"="+n.bed.Dir,
	)
}

// Command is a program to be run in the node, by Output or with
// n.Namespace.Start.
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = n.env()
	return cmd
}

// Output runs cmd in the node and gives its standard output, also together
// with an error, which has its standard error.
func (n *Node) Output(ctx context.Context, cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// Whoever inherits the output, a shim for instance, does not hold us up.
	cmd.WaitDelay = 10 * time.Second
	err := n.Namespace.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("node %s: %s %s: %w\n%s", n.Name, filepath.Base(cmd.Path), strings.Join(cmd.Args[1:], " "), err, stderr.String())
		err = errors.Join(err, ctx.Err())
	}
	return stdout.String(), err
}

// Ctr runs containerd's own client on the node.
func (n *Node) Ctr(ctx context.Context, args ...string) (string, error) {
	return n.Output(ctx, n.Command(ctx, filepath.Join(n.bed.tools, "ctr"), args...))
}

// Import puts an image into the node's containerd, without unpacking it.
func (n *Node) Import(ctx context.Context, im *image.Image) error {
	cmd := n.Command(ctx, filepath.Join(n.bed.tools, "ctr"), "images", "import", "--local", "--no-unpack", "-")
	r, w := io.Pipe()
	cmd.Stdin = r
	go func() { w.CloseWithError(im.WriteArchive(w)) }()
	_, err := n.Output(ctx, cmd)
	return errors.Join(err, r.Close())
}

// RunCommand is `ctr run --rm` of an image on a snapshotter, to be started by
// the caller; without args the image's own command runs. The container's name
// is new.
func (n *Node) RunCommand(ctx context.Context, snapshotter, image string, args ...string) *exec.Cmd {
	id := fmt.Sprintf("run%d", n.containers.Add(1))
	return n.Command(ctx, filepath.Join(n.bed.tools, "ctr"),
		append([]string{"run", "--rm", "--snapshotter", snapshotter, image, id}, args...)...)
}

// Run runs a container to its end and gives its standard output.
func (n *Node) Run(ctx context.Context, snapshotter, image string, args ...string) (string, error) {
	return n.Output(ctx, n.RunCommand(ctx, snapshotter, image, args...))
}

// MountImage mounts the root of an image read-only at a new folder, as the
// snapshotter gives it, unpacking it first where it is not. unmount takes it
// away.
func (n *Node) MountImage(ctx context.Context, snapshotter, image string) (dir string, unmount func() error, err error) {
	dir = filepath.Join(n.Dir, fmt.Sprintf("m%d", n.containers.Add(1)))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", nil, err
	}
	if _, err := n.Ctr(ctx, "images", "mount", "--snapshotter", snapshotter, image, dir); err != nil {
		return "", nil, errors.Join(err, os.Remove(dir))
	}
	return dir, func() error {
		_, err := n.Ctr(ctx, "images", "unmount", "--rm", "--snapshotter", snapshotter, dir)
		return errors.Join(err, os.Remove(dir))
	}, nil
}

// Close ends everything on the node: containers, containerd, daemon. [Bed.Close]
// does it for all nodes.
func (n *Node) Close() error {
	// A daemon that hangs must not hold up the end of a test for ever.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return errors.Join(n.removeContainers(ctx), n.removeImages(ctx), n.StopContainerd(), n.StopDaemon())
}
