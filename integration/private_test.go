package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/capture"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/stranger"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
)

// handshakeBytes bound what a node tells somebody of whom it does not know yet
// that he is a stranger: names of protocols, its public key, a signature (by TLS
// 2 KiB; the rest is for what TCP sends twice).
const handshakeBytes = 4 << 10

// privatePort is where daemons of a testbed listen, and the stranger.
const privatePort = 4001

// TestPrivate counts every packet that leaves a private node which reads, is
// read from, and looks for what nobody has, on a network where a stranger is
// the way to everywhere else: nothing is for anybody but the one peer that is
// allowed. The stranger, who knows the node's address and what it holds, gets
// nothing out of it.
func TestPrivate(t *testing.T) {
	for name, allowList := range map[string]bool{"allow-list": true, "swarm key": false} {
		t.Run(name, func(t *testing.T) { testPrivate(t, allowList) })
	}
}

func testPrivate(t *testing.T, allowList bool) {
	bed := newIPFSBed(t, testbed.Options{Nodes: 3})
	node, peer, other := bed.Nodes[0], bed.Nodes[1], bed.Nodes[2]
	conf := func(peers ...string) testbed.DaemonConfig {
		return testbed.DaemonConfig{AllowList: allowList, Peers: peers, FetchTimeout: faultTimeout}
	}
	if err := errors.Join(node.Namespace.DisableIPv6(), node.Namespace.SetDefaultRoute(other.Namespace.Addr)); err != nil {
		t.Fatal(err)
	}
	packets := startCapture(t, node)

	// Each of the two has to know the other's id first.
	peerAddr := startDaemon(t, peer, conf())
	nodeAddr := startDaemon(t, node, conf(peerAddr))
	if err := peer.StopDaemon(); err != nil {
		t.Fatal(err)
	}
	startDaemon(t, peer, conf(nodeAddr))
	client := rpc(t, node)

	held := addFile(t, node, randomFile(30, 1<<20))
	first := askStranger(t, other, nodeAddr, held.String())
	theirs := randomFile(31, 3<<20)
	eventually(t, "the node to read from its peer", func() bool {
		got, err := cat(t.Context(), client, addFile(t, peer, theirs), 0, -1)
		return err == nil && hash(got) == hash(theirs)
	})
	if got, err := cat(t.Context(), rpc(t, peer), held, 0, -1); err != nil || len(got) != 1<<20 {
		t.Errorf("the peer reads %d bytes from the node: %v", len(got), err)
	}
	// What nobody has is where a node would be tempted to ask somebody else.
	missing := fileCID(t, randomFile(32, 1<<20))
	t.Log(failedCat(t, client, missing))
	if err := peer.StopDaemon(); err != nil {
		t.Fatal(err)
	}
	t.Log(failedCat(t, client, missing))
	second := askStranger(t, other, nodeAddr, held.String())
	for _, r := range []stranger.Report{first, second} {
		if len(r.Got) > 0 || r.Inbound > 0 {
			t.Errorf("the stranger got something: %d connections, %q", r.Inbound, r.Got)
		}
	}
	checkFlows(t, packets, node, peer, other)
}

// startCapture counts what goes over a node's link while the test runs.
func startCapture(t *testing.T, n *testbed.Node) *capture.Capture {
	t.Helper()
	c, err := capture.Start(n.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// askStranger sends a stranger, in a node's place, to another one.
func askStranger(t *testing.T, n *testbed.Node, target, cid string) (r stranger.Report) {
	t.Helper()
	plan, err := json.Marshal(stranger.Plan{Target: target, CID: cid, Listen: fmt.Sprintf("/ip4/%s/tcp/%d", n.Namespace.Addr, privatePort)})
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := n.Command(t.Context(), self, stranger.Argument)
	cmd.Stdin = bytes.NewReader(plan)
	out, err := n.Output(t.Context(), cmd)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if len(r.Failures) == 0 {
		t.Errorf("the stranger has not tried anything: %+v", r)
	}
	t.Logf("the stranger failed with:\n%s", strings.Join(r.Failures, "\n"))
	return r
}

// checkFlows looks at every packet that left a node: it may ask for the link
// addresses of its neighbours, talk TCP with its peer, and answer the stranger's
// own dialing, up to a handshake.
func checkFlows(t *testing.T, packets *capture.Capture, node, peer, other *testbed.Node) {
	t.Helper()
	if dropped, err := packets.Dropped(); dropped > 0 || err != nil {
		t.Errorf("%d packets went by unseen: %v", dropped, err)
	}
	neighbours := []netip.Addr{node.Namespace.Addr, peer.Namespace.Addr, other.Namespace.Addr}
	var toPeer, answers, dialed int64
	for f, n := range packets.Flows() {
		stranger := f.TCP() && f.Peer == other.Namespace.Addr && f.LocalPort == privatePort
		switch {
		case !f.Sent:
			if stranger {
				dialed += n.Opened
			}
		case f.ARP() && slices.Contains(neighbours, f.Peer):
		case f.TCP() && f.Peer == peer.Namespace.Addr:
			toPeer += n.PayloadBytes
		case stranger && n.Opened == 0:
			answers += n.PayloadBytes
			t.Logf("answered: %v: %d packets, %d bytes of data", f, n.Packets, n.PayloadBytes)
		default:
			t.Errorf("this left the node: %v: %+v", f, n)
		}
	}
	t.Logf("the stranger dialed %d times and was answered with %d bytes", dialed, answers)
	if toPeer < 1<<20 || dialed == 0 {
		t.Errorf("%d bytes went to the peer and the stranger dialed %d times: this test tests nothing", toPeer, dialed)
	}
	if answers > dialed*handshakeBytes {
		t.Errorf("the stranger, who dialed %d times, was answered with %d bytes", dialed, answers)
	}
}
