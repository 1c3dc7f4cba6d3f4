package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	imagepkg "github.com/ipfs-stargz/ipfs-stargz/image"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/image"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
)

// TestHelia exchanges blocks with an implementation of IPFS that shares no code
// with ours, over bitswap: it reads a layer that we pushed, and we read a file
// that it made. Each is the only peer that the other one knows.
func TestHelia(t *testing.T) {
	im := testImage(t, image.Debian())
	bed := newIPFSBed(t, testbed.Options{Nodes: 2})
	ours, theirs := bed.Nodes[0], bed.Nodes[1]
	h := newHelia(t, theirs)
	addr := startDaemon(t, ours, testbed.DaemonConfig{AllowList: true, Peers: []string{"/p2p/" + h.id(t)}})
	h.start(t, addr)

	root, err := ours.Push(t.Context(), "oci:"+im.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layersOf(t, ours, root) {
		path := filepath.Join(theirs.Dir, "layer")
		if got := h.ask(t, map[string]string{"cat": l.CID, "to": path}); got.Bytes != l.Size {
			t.Fatalf("helia read %d bytes of a layer of %d", got.Bytes, l.Size)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if hash(data) != l.Digest.Encoded() {
			t.Errorf("helia read layer %s with the hash %s, want %s", l.CID, hash(data), l.Digest)
		}
	}

	file := randomFile(5, 5_000_003)
	path := filepath.Join(theirs.Dir, "file")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := cid.Decode(h.ask(t, map[string]string{"add": path}).CID)
	if err != nil {
		t.Fatal(err)
	}
	if c.Type() == cid.Raw {
		t.Errorf("helia made one block of the file: %s", c)
	}
	got, err := cat(t.Context(), rpc(t, ours), c, 0, -1)
	if err != nil || hash(got) != hash(file) {
		t.Errorf("we read %d bytes of helia's file of %d, or others: %v", len(got), len(file), err)
	}
}

// layersOf are the layers of an image in IPFS.
func layersOf(t *testing.T, n *testbed.Node, root string) (layers []imagepkg.Layer) {
	t.Helper()
	out, err := n.Stargz(t.Context(), "inspect", "--json", root)
	if err != nil {
		t.Fatal(err)
	}
	var report imagepkg.Report
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatal(err)
	}
	for _, m := range report.Manifests {
		layers = append(layers, m.Layers...)
	}
	if len(layers) == 0 {
		t.Fatalf("%s has no layers:\n%s", root, out)
	}
	return layers
}

// helia is a process of integration/helia/peer.mjs on a node.
type helia struct {
	node    *testbed.Node
	dir     string // of the program
	in      io.WriteCloser
	answers chan heliaAnswer
}

type heliaAnswer struct {
	Connected string `json:"connected"`
	Bytes     int64  `json:"bytes"`
	CID       string `json:"cid"`
	Error     string `json:"error"`
}

func newHelia(t *testing.T, n *testbed.Node) *helia {
	t.Helper()
	root, err := testbed.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	h := &helia{node: n, dir: filepath.Join(root, "integration", "helia"), answers: make(chan heliaAnswer)}
	if _, err := os.Stat(h.program()); err != nil {
		t.Fatalf("helia is not installed: `make helia` does it: %v", err)
	}
	return h
}

// program is the Node.js that comes with the packages.
func (h *helia) program() string { return filepath.Join(h.dir, "node_modules", ".bin", "node") }

func (h *helia) command(ctx context.Context, args ...string) *exec.Cmd {
	args = append([]string{filepath.Join(h.dir, "peer.mjs"), filepath.Join(h.node.Dir, "helia.key")}, args...)
	return h.node.Command(ctx, h.program(), args...)
}

// id is the peer id, before the peer runs.
func (h *helia) id(t *testing.T) string {
	t.Helper()
	out, err := h.node.Output(t.Context(), h.command(t.Context(), "id"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// start connects it; it ends with the test.
func (h *helia) start(t *testing.T, addr string) {
	t.Helper()
	log, err := os.Create(filepath.Join(h.node.Dir, "helia.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	// It outlives the test's context: its cleanup ends it, in order.
	cmd := h.command(context.WithoutCancel(t.Context()), "serve", addr)
	cmd.Stderr = log
	var out io.ReadCloser
	if h.in, err = cmd.StdinPipe(); err == nil {
		out, err = cmd.StdoutPipe()
	}
	if err == nil {
		err = h.node.Namespace.Start(cmd)
	}
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		defer close(h.answers)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var a heliaAnswer
			if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
				a.Error = err.Error() + ": " + lines.Text()
			}
			h.answers <- a
		}
		ended <- errors.Join(lines.Err(), cmd.Wait())
	}()
	t.Cleanup(func() {
		if err := h.in.Close(); err != nil {
			t.Error(err)
		}
		for range h.answers { // that nobody waited for
		}
		if err := <-ended; err != nil {
			t.Errorf("helia ended: %v", err)
		}
	})
	if a := h.answer(t); a.Connected != addr {
		t.Fatalf("helia is not connected: %+v", a)
	}
}

// ask gives an order and waits for the answer.
func (h *helia) ask(t *testing.T, order any) heliaAnswer {
	t.Helper()
	line, err := json.Marshal(order)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.in.Write(append(line, '\n')); err != nil {
		t.Fatal(err)
	}
	return h.answer(t)
}

func (h *helia) answer(t *testing.T) heliaAnswer {
	t.Helper()
	select {
	case a, ok := <-h.answers:
		if !ok || a.Error != "" {
			t.Fatalf("helia: %s (it runs: %v)", a.Error, ok)
		}
		return a
	case <-time.After(2 * time.Minute):
		t.Fatal("helia does not answer")
		return heliaAnswer{}
	}
}
