package stranger

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/blockstore"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2phttp "github.com/libp2p/go-libp2p/p2p/http"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const anyPort = "/ip4/127.0.0.1/tcp/0"

func newHost(t *testing.T, opts ...libp2p.Option) host.Host {
	t.Helper()
	h, err := libp2p.New(append(opts, libp2p.ListenAddrStrings(anyPort), libp2p.DisableMetrics())...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func addr(h host.Host) string { return fmt.Sprintf("%s/p2p/%s", h.Addrs()[0], h.ID()) }

// TestOpenNode is what shows that the stranger is worth something: from a node
// that talks to everybody it gets all that it tries to get, and notes what the
// node wants of it.
func TestOpenNode(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	h := newHost(t)
	b := blocks.NewBlock([]byte("a block"))
	store := blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))
	if err := store.Put(ctx, b); err != nil {
		t.Fatal(err)
	}
	swap := bitswap.New(ctx, bsnet.NewFromIpfsHost(h), nil, store)
	defer swap.Close()
	wanted := blocks.NewBlock([]byte("a block that nobody has")).Cid()
	wants, err := swap.NewSession(ctx).GetBlocks(ctx, []cid.Cid{wanted})
	if err != nil {
		t.Fatal(err)
	}
	web := &libp2phttp.Host{StreamHost: h}
	web.SetHTTPHandlerAtPath("/ipfs/gateway", "/", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if _, err := w.Write(b.RawData()); err != nil {
			t.Error(err)
		}
	}))
	var served sync.WaitGroup
	served.Go(func() {
		if err := web.Serve(); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serving HTTP: %v", err)
		}
	})

	r, err := Run(ctx, Plan{Target: addr(h), CID: b.Cid().String(), Listen: anyPort})
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(r.Got, "\n")
	for _, want := range []string{
		"the protocols [", "an answer to ping", "blocks [" + b.Cid().String(), "wants [" + wanted.String(),
		"HTTP /ipfs/" + b.Cid().String(), `"a block"`, "/.well-known/libp2p/protocols: 200",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the stranger did not note %q", want)
		}
	}
	if t.Failed() {
		t.Logf("it has:\n%s\nand failed with:\n%s", got, strings.Join(r.Failures, "\n"))
	}
	cancel()
	for range wants {
	}
	if err := web.Close(); err != nil {
		t.Error(err)
	}
	served.Wait()
}

// TestClosedNode gets nothing of one that hangs up on everybody, with an entry
// for each attempt.
func TestClosedNode(t *testing.T) {
	h := newHost(t, libp2p.ConnectionGater(closed{}))
	c := blocks.NewBlock([]byte("a block")).Cid()
	r, err := Run(t.Context(), Plan{Target: addr(h), CID: c.String(), Listen: anyPort})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Got) > 0 || r.Inbound > 0 || len(r.Failures) != 6 {
		t.Errorf("of a node that is closed: %+v", r)
	}
}

// TestInbound notes who dials and what they say.
func TestInbound(t *testing.T) {
	for _, p := range []Plan{{Target: "no address"}, {Target: anyPort}} {
		if _, err := Run(t.Context(), p); err == nil {
			t.Errorf("%+v was taken for a plan", p)
		}
	}
	h := newHost(t)
	s := &stranger{report: &Report{}}
	other := newHost(t)
	h.Network().Notify(&network.NotifyBundle{ConnectedF: s.connected})
	h.SetStreamHandler("/told", s.stream)
	if err := other.Connect(t.Context(), peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()}); err != nil {
		t.Fatal(err)
	}
	st, err := other.NewStream(t.Context(), h.ID(), "/told")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Write([]byte("a secret")); err != nil {
		t.Fatal(err)
	}
	if err := st.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	// It hangs up when it has read all.
	if _, err := st.Read(make([]byte, 1)); err == nil {
		t.Error("the stranger answers")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.report.Inbound != 1 || len(s.report.Got) != 1 || !strings.Contains(s.report.Got[0], "a secret") {
		t.Errorf("noted: %+v", s.report)
	}
}

// closed lets nobody in once they said who they are.
type closed struct{}

var _ connmgr.ConnectionGater = closed{}

func (closed) InterceptPeerDial(peer.ID) bool               { return false }
func (closed) InterceptAddrDial(peer.ID, ma.Multiaddr) bool { return false }
func (closed) InterceptAccept(network.ConnMultiaddrs) bool  { return true }
func (closed) InterceptSecured(network.Direction, peer.ID, network.ConnMultiaddrs) bool {
	return false
}

func (closed) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return false, 0 }
