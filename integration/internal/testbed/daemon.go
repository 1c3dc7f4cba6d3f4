package testbed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// ipfsPort is where the daemons listen for each other.
const ipfsPort = 4001

// DaemonConfig is what a test can choose of a daemon's configuration.
type DaemonConfig struct {
	// Peers are multiaddrs of the nodes that it stays connected to, as
	// [Node.Multiaddr] gives them.
	Peers []string
	// Announce are the multiaddrs that peers are told in place of the node's own.
	Announce []string
	// SwarmKey is the file of a private network's key; the default is one that
	// all nodes of the bed have.
	SwarmKey string
	// AllowList is for a daemon without any key: only Peers may connect.
	AllowList bool
	// FetchTimeout is after how long without progress a read fails; 0 is the
	// daemon's own default.
	FetchTimeout time.Duration
	// Mode is fs.mode: "kernel" or "fuse"; "" is the daemon's own default.
	Mode string
	// Background fetches what nobody has read yet while nobody reads, as a
	// daemon does by default; here only who asks for it gets it, since it
	// would change what tests count.
	Background bool
	// FS, IPFS and Prefetch are TOML to add to the tables [fs], [ipfs] and
	// [prefetch]. Top and Extra are other TOML: keys before the first table, and
	// tables.
	FS, IPFS, Prefetch, Top, Extra string
	// Env is what is added to the daemon's environment, as in "GOMAXPROCS=1".
	Env []string
}

func (n *Node) writeDaemonConfig(c DaemonConfig) error {
	var b strings.Builder
	fmt.Fprintf(&b, "root = %q\naddress = %q\n%s\n", n.DaemonRoot(), n.DaemonSocket(), c.Top)
	fmt.Fprintf(&b, "[api]\naddress = %q\n", n.APISocket())
	fmt.Fprintf(&b, "[ipfs]\nlisten = [%q]\n", fmt.Sprintf("/ip4/%s/tcp/%d", n.Namespace.Addr, ipfsPort))
	fmt.Fprintf(&b, "peers = %s\nannounce = %s\n", tomlList(c.Peers), tomlList(c.Announce))
	if c.SwarmKey == "" {
		c.SwarmKey = n.bed.swarmKey()
	}
	if !c.AllowList {
		fmt.Fprintf(&b, "swarm_key = %q\n", c.SwarmKey)
	}
	if c.FetchTimeout > 0 {
		fmt.Fprintf(&b, "fetch_timeout = %q\n", c.FetchTimeout)
	}
	fmt.Fprintf(&b, "%s\n[fs]\n", c.IPFS)
	if c.Mode != "" {
		fmt.Fprintf(&b, "mode = %q\n", c.Mode)
	}
	fmt.Fprintf(&b, "%s\n[prefetch]\nbackground = %v\n%s\n%s", c.FS, c.Background, c.Prefetch, c.Extra)
	return os.WriteFile(n.daemonConfig(), []byte(b.String()), 0o600)
}

func tomlList(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = fmt.Sprintf("%q", s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// StartDaemon writes the configuration, starts `ipfs-stargz serve`, for the
// first time or again, and waits until it is ready.
func (n *Node) StartDaemon(ctx context.Context, c DaemonConfig) error {
	if n.daemon != nil {
		return fmt.Errorf("the daemon of node %s runs already", n.Name)
	}
	if n.bed.binary == "" {
		return errors.New("this bed was made without an ipfs-stargz to run: set Options.Binary")
	}
	if err := n.writeDaemonConfig(c); err != nil {
		return err
	}
	cmd := exec.Command(n.bed.daemon, "serve", "--config", n.daemonConfig())
	cmd.Env = append(n.env(), c.Env...)
	p, err := startProcess(ctx, n.Namespace, cmd, filepath.Join(n.Dir, "d.notify"), n.DaemonLog())
	if err != nil {
		return err
	}
	n.daemon = p
	return nil
}

// StopDaemon ends the daemon as systemd does, by SIGTERM.
func (n *Node) StopDaemon() error { return n.endDaemon((*process).stop) }

// KillDaemon ends it by SIGKILL.
func (n *Node) KillDaemon() error { return n.endDaemon((*process).kill) }

func (n *Node) endDaemon(end func(*process) error) error {
	if n.daemon == nil {
		return nil
	}
	p := n.daemon
	n.daemon = nil
	return end(p)
}

// DaemonPID is the process id of the daemon, which must run.
func (n *Node) DaemonPID() int { return n.daemon.cmd.Process.Pid }

// DaemonLog is the file that the daemon's output goes to, over all its starts.
func (n *Node) DaemonLog() string { return filepath.Join(n.Dir, "daemon.log") }

// Stargz runs an ipfs-stargz command against the node's daemon and containerd
// and gives what it printed on standard output; an error has its standard
// error.
func (n *Node) Stargz(ctx context.Context, command string, args ...string) (string, error) {
	return n.Output(ctx, n.StargzCommand(ctx, command, args...))
}

// StargzCommand is the same, to be started by the caller in n.Namespace.
func (n *Node) StargzCommand(ctx context.Context, command string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, n.bed.binary, append([]string{command, "--config", n.daemonConfig()}, args...)...)
	cmd.Env = n.env()
	return cmd
}

// Push pushes an image, by its name in the node's containerd or by the path of
// an archive, and gives the root CID.
func (n *Node) Push(ctx context.Context, image string, args ...string) (string, error) {
	out, err := n.Stargz(ctx, "push", append(args, image)...)
	if err != nil {
		return "", err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return lines[len(lines)-1], nil
}

// Pull pulls ipfs://CID into the node's containerd; the image is named by the
// bare CID.
func (n *Node) Pull(ctx context.Context, cid string, args ...string) error {
	_, err := n.Stargz(ctx, "pull", append(args, "ipfs://"+cid)...)
	return err
}

// Multiaddr is where other nodes reach this one's daemon: its address on the
// network, with its peer ID from `ipfs-stargz status`.
func (n *Node) Multiaddr(ctx context.Context) (string, error) {
	out, err := n.Stargz(ctx, "status", "--json")
	if err != nil {
		return "", err
	}
	var status struct {
		PeerID string `json:"peer_id"`
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return "", fmt.Errorf("status of node %s: %w: %s", n.Name, err, out)
	}
	if status.PeerID == "" {
		return "", fmt.Errorf("status of node %s has no peer_id: %s", n.Name, out)
	}
	return fmt.Sprintf("/ip4/%s/tcp/%d/p2p/%s", n.Namespace.Addr, ipfsPort, status.PeerID), nil
}

// DaemonRoot is where the daemon keeps everything.
func (n *Node) DaemonRoot() string { return filepath.Join(n.Dir, "d") }

// DaemonSocket is what containerd talks to.
func (n *Node) DaemonSocket() string { return filepath.Join(n.Dir, "d.sock") }

// APISocket is where the daemon's RPC is.
func (n *Node) APISocket() string { return filepath.Join(n.Dir, "api.sock") }

func (n *Node) daemonConfig() string { return filepath.Join(n.Dir, "daemon.toml") }
