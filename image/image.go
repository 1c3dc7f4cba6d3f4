// Package image moves images between containerd and IPFS: [Push] puts one into
// IPFS, as eStargz, under one root CID; [Pull] brings it into containerd
// through a remote snapshotter, which mounts the layers before they are there;
// [Inspect] tells what a CID holds; [SaveCAR] and [LoadCAR] carry one in a file;
// [Parts] lists what has to be kept for one to be whole. They are what the command
// line calls, and the daemon to pin an image.
//
// The layout in IPFS is that of nerdctl: the root CID is that of the JSON
// descriptor of the image's index or manifest; this and every blob of the image
// is a UnixFS file, and each descriptor carries "ipfs://CID" among its URLs.
//
// Below: image/oci reads documents that nobody vouches for, image/layout reads
// and writes OCI archives, image/convert makes the image that is pushed with
// image/estargz, image/progress shows how far it is.
package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// Daemon is what is asked of the daemon that holds the IPFS node. ipfs/kubo's
// Client implements it, for ours and for Kubo.
type Daemon interface {
	Reader
	// ImportCAR stores the blocks that produce puts, and pins roots.
	ImportCAR(ctx context.Context, roots []cid.Cid, produce func(put ipfs.PutFunc) error) error
}

// Reader reads what is in IPFS.
type Reader interface {
	ipfs.Blocks
	// Cat reads the UnixFS file at path, a CID, from offset on: at most length
	// bytes, or all if length is negative. The bytes are not verified.
	Cat(ctx context.Context, path string, offset, length int64) (io.ReadCloser, error)
}

// Containerd says where containerd is.
type Containerd struct {
	Address   string // path of its socket; default /run/containerd/containerd.sock
	Namespace string // default "default"
}

// Defaults of [Containerd] and of [PullOptions].
const (
	DefaultContainerdAddress   = "/run/containerd/containerd.sock"
	DefaultContainerdNamespace = namespaces.Default
	DefaultSnapshotter         = "ipfs-stargz"
)

// Errors about what has to be there besides the image.
var (
	// ErrNoContainerd: containerd does not answer.
	ErrNoContainerd = errors.New("containerd is not reachable")
	// ErrNoSnapshotter: containerd does not know the snapshotter.
	ErrNoSnapshotter = errors.New("snapshotter is not registered in containerd")
)

// dialTimeout bounds how long containerd is waited for.
const dialTimeout = 10 * time.Second

// connect returns a client of containerd, which answered, and a context with
// the namespace. The caller closes the client.
func (c Containerd) connect(ctx context.Context) (context.Context, *containerd.Client, error) {
	address := c.Address
	if address == "" {
		address = DefaultContainerdAddress
	}
	namespace := c.Namespace
	if namespace == "" {
		namespace = DefaultContainerdNamespace
	}
	ctx = namespaces.WithNamespace(ctx, namespace)
	// gRPC would go on trying until the timeout, and then not say why.
	conn, err := new(net.Dialer).DialContext(ctx, "unix", address)
	if err != nil {
		return nil, nil, unreachable(address, err)
	}
	conn.Close()
	client, err := containerd.New(address, containerd.WithTimeout(dialTimeout), containerd.WithDefaultNamespace(namespace))
	if err != nil {
		return nil, nil, unreachable(address, err)
	}
	ask, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if _, err := client.Version(ask); err != nil {
		client.Close()
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		return nil, nil, unreachable(address, err)
	}
	return ctx, client, nil
}

// Check tells whether containerd answers and has the snapshotter called name,
// and what to do if not.
func (c Containerd) Check(ctx context.Context, name string) error {
	ctx, client, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	return checkSnapshotter(ctx, client, name)
}

func unreachable(address string, err error) error {
	return fmt.Errorf("%w at %s: %w; start it (systemctl start containerd), or say where its socket is", ErrNoContainerd, address, err)
}

// checkSnapshotter tells whether containerd has the snapshotter called name
// and could load it, and what to configure if not.
func checkSnapshotter(ctx context.Context, client *containerd.Client, name string) error {
	const kind = "io.containerd.snapshotter.v1"
	reply, err := client.IntrospectionService().Plugins(ctx, fmt.Sprintf("type==%s,id==%q", kind, name))
	if err != nil {
		return fmt.Errorf("ask containerd for its snapshotters: %w", err)
	}
	if len(reply.Plugins) == 0 {
		return fmt.Errorf("%w: %q; add this to /etc/containerd/config.toml, with the daemon's socket, and restart containerd:\n\n"+
			"[proxy_plugins.%s]\n  type = \"snapshot\"\n  address = \"/run/ipfs-stargz/ipfs-stargz.sock\"", ErrNoSnapshotter, name, name)
	}
	for _, p := range reply.Plugins {
		if p.InitErr != nil {
			return fmt.Errorf("%w: containerd could not load %q: %s; see containerd's log", ErrNoSnapshotter, name, p.InitErr.GetMessage())
		}
	}
	return nil
}
