// Package testbed sets up what a test or the demo runs on: nodes in network
// namespaces of their own, joined by shaped links, each with a real containerd
// and the daemon of this project.
//
// A [Bed] has everything of a run in one folder with a short name (paths of
// sockets and mount options have limits) on a disk, not in the clone: overlay
// wants a real file system below it. Close takes all of it away again; what a
// broken run leaves behind [Sweep] finds by the folder's name.
package testbed

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/image"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testnet"
)

// markVariable is in the environment of every process of a bed, and says of
// which.
const markVariable = "IPFS_STARGZ_TESTBED"

// Options say what a bed is made of.
type Options struct {
	// Nodes is their number.
	Nodes int
	// BitsPerSecond shapes each node's link, in each direction; 0 does not.
	BitsPerSecond int64
	// Binary is the ipfs-stargz under test. A bed whose daemons are never
	// started needs none.
	Binary string
	// Daemon is the one that daemons are started from; the default is Binary.
	Daemon string
	// NoContainerd is for a bed that never starts one: it need not be installed.
	NoContainerd bool
	// Parent is where the bed's folder is made; the default is /var/tmp.
	Parent string
}

// Bed is a set of nodes on one network.
type Bed struct {
	// Dir has everything of this bed.
	Dir string
	// Net joins the nodes.
	Net *testnet.Net
	// Nodes are named a, b, c, …
	Nodes []*Node

	id     string
	record string // symbolic link to Dir, by which a broken run is found
	binary string
	daemon string
	tools  string // folder of containerd
}

// New makes a bed. Nothing runs in it yet.
func New(o Options) (_ *Bed, err error) {
	root, err := ModuleRoot()
	if err != nil {
		return nil, err
	}
	b := &Bed{binary: o.Binary, daemon: cmp.Or(o.Daemon, o.Binary)}
	if !o.NoContainerd {
		if b.tools, err = containerdDir(root); err != nil {
			return nil, err
		}
	}
	if b.binary != "" {
		if b.binary, err = filepath.Abs(b.binary); err != nil {
			return nil, err
		}
		if b.daemon, err = filepath.Abs(b.daemon); err != nil {
			return nil, err
		}
	}
	if err := b.makeDir(o.Parent, root); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	if b.Net, err = testnet.New(o.Nodes); err != nil {
		return nil, err
	}
	if err := b.Net.SetRate(o.BitsPerSecond); err != nil {
		return nil, err
	}
	for i, ns := range b.Net.Nodes {
		n := &Node{Name: string(rune('a' + i)), Namespace: ns, bed: b}
		n.Dir = filepath.Join(b.Dir, n.Name)
		if err := os.Mkdir(n.Dir, 0o700); err != nil {
			return nil, err
		}
		b.Nodes = append(b.Nodes, n)
	}
	return b, nil
}

// makeDir makes the bed's folder and its record.
func (b *Bed) makeDir(parent, root string) error {
	if parent == "" {
		parent = "/var/tmp"
	}
	var random [3]byte
	if _, err := rand.Read(random[:]); err != nil {
		return err
	}
	b.id = "ist-" + hex.EncodeToString(random[:])
	b.Dir = filepath.Join(parent, b.id)
	runs := filepath.Join(root, "out", "run")
	if err := os.MkdirAll(runs, 0o755); err != nil {
		return err
	}
	b.record = filepath.Join(runs, b.id)
	if err := os.Symlink(b.Dir, b.record); err != nil {
		return err
	}
	if err := os.Mkdir(b.Dir, 0o700); err != nil {
		return err
	}
	return writeSwarmKey(b.swarmKey())
}

// swarmKey is the file of the private network that the bed's nodes make up.
func (b *Bed) swarmKey() string { return filepath.Join(b.Dir, "swarm.key") }

// writeSwarmKey makes a key in the format of Kubo.
func writeSwarmKey(path string) error {
	var key [32]byte
	if _, err := rand.Read(key[:]); err != nil {
		return err
	}
	return os.WriteFile(path, fmt.Appendf(nil, "/key/swarm/psk/1.0.0/\n/base16/\n%x\n", key), 0o600)
}

// Binary is the ipfs-stargz under test.
func (b *Bed) Binary() string { return b.binary }

// Close stops and unmounts everything and removes the folder. It does all of
// it whatever fails, and says what did.
func (b *Bed) Close() error {
	var errs []error
	for _, n := range b.Nodes {
		errs = append(errs, n.Close())
	}
	if b.Net != nil {
		errs = append(errs, b.Net.Close())
	}
	left, err := sweep(b.Dir)
	errs = append(errs, err)
	for _, l := range left {
		// containerd's mount manager lets go of its mounts some time later, and
		// not when it ends.
		if !strings.Contains(l, "/io.containerd.mount-manager.") {
			errs = append(errs, fmt.Errorf("left behind, and taken away now: %s", l))
		}
	}
	errs = append(errs, os.Remove(b.record))
	return errors.Join(errs...)
}

// Logs gives the end of every log of the bed, for the report of a failure.
func (b *Bed) Logs() string {
	const tail = 8 << 10
	var out strings.Builder
	logs, err := filepath.Glob(filepath.Join(b.Dir, "*", "*.log"))
	if err != nil {
		return err.Error()
	}
	for _, name := range logs {
		text, err := os.ReadFile(name)
		if err != nil {
			text = []byte(err.Error())
		}
		if len(text) > tail {
			text = append([]byte("…"), text[len(text)-tail:]...)
		}
		fmt.Fprintf(&out, "--- %s\n%s\n", name, text)
	}
	return out.String()
}

// Images gives the store of test images, which all runs of a clone share.
func Images() (*image.Store, error) {
	root, err := ModuleRoot()
	if err != nil {
		return nil, err
	}
	return image.NewStore(filepath.Join(root, "out", "images")), nil
}

// ModuleRoot is the folder of go.mod, at or above the working directory.
func ModuleRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod at or above %s: run this in a clone", start)
		}
	}
}

// Build builds ipfs-stargz into the clone's out folder and gives its path;
// race adds the race detector. The Go build cache makes it cheap to ask again.
func Build(ctx context.Context, race bool) (string, error) {
	root, err := ModuleRoot()
	if err != nil {
		return "", err
	}
	name, args := "ipfs-stargz", []string{"build"}
	if race {
		name, args = "ipfs-stargz-race", append(args, "-race")
	}
	path := filepath.Join(root, "out", "bin", name)
	return path, run(ctx, root, "go", append(args, "-o", path, "./cmd/ipfs-stargz")...)
}

// BuildTool builds a command of the folder integration/cmd in the same way.
func BuildTool(ctx context.Context, name string) (string, error) {
	root, err := ModuleRoot()
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, "out", "bin", name)
	return path, run(ctx, root, "go", "build", "-o", path, "./integration/cmd/"+name)
}
