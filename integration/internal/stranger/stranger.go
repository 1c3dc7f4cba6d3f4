// Package stranger is somebody whom a private node does not know: a libp2p host
// with bitswap, as client and server, and with HTTP over libp2p, that knows the
// node's address and peer id and the CID of what it holds. It tries whatever it
// can to get that, and writes down whatever it gets.
package stranger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/boxo/bitswap"
	bsmsg "github.com/ipfs/boxo/bitswap/message"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	libp2phttp "github.com/libp2p/go-libp2p/p2p/http"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
)

// patience is how long each attempt may take; a node that answers at all does
// so within milliseconds.
const patience = 3 * time.Second

// Argument is the first argument of a program that is to be the stranger.
const Argument = "stranger"

// Plan is what the stranger knows.
type Plan struct {
	Target string // multiaddr with /p2p/ID
	CID    string // of a block that the target holds
	Listen string // multiaddr on which the target could reach the stranger
}

// Report is what it got. Of a node that is private all but Failures is empty.
type Report struct {
	// Got lists what the target said, by any protocol: messages of bitswap
	// with their CIDs, answers of HTTP, names of protocols, bytes of streams.
	Got []string
	// Inbound counts connections that the target made.
	Inbound int
	// Failures are how the attempts ended, for people to read.
	Failures []string
}

// Run tries everything once.
func Run(ctx context.Context, p Plan) (r Report, err error) {
	target, err := peer.AddrInfoFromString(p.Target)
	if err != nil {
		return r, err
	}
	c, err := cid.Decode(p.CID)
	if err != nil {
		return r, err
	}
	h, err := libp2p.New(
		libp2p.ListenAddrStrings(p.Listen), libp2p.Transport(tcp.NewTCPTransport), libp2p.DisableRelay(),
		libp2p.ResourceManager(&network.NullResourceManager{}), libp2p.DisableIdentifyAddressDiscovery(), libp2p.DisableMetrics(),
	)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	s := &stranger{host: h, target: *target, cid: c, report: &r}
	h.Network().Notify(&network.NotifyBundle{ConnectedF: s.connected})
	// Whatever the target may want of us, by whatever protocol.
	h.SetStreamHandlerMatch("/", func(p protocol.ID) bool {
		return !strings.HasPrefix(string(p), "/ipfs/bitswap") // that has a tap
	}, s.stream)
	err = s.attempts(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	return r, err
}

type stranger struct {
	host   host.Host
	target peer.AddrInfo
	cid    cid.Cid

	mu     sync.Mutex
	report *Report
}

func (s *stranger) got(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.report.Got = append(s.report.Got, fmt.Sprintf(format, args...))
}

func (s *stranger) connected(_ network.Network, c network.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.Stat().Direction == network.DirInbound {
		s.report.Inbound++
	}
}

// stream writes down that the target talks to us, and what it says first.
func (s *stranger) stream(st network.Stream) {
	defer func() { _ = st.Reset() }() // it may have gone already
	data, err := io.ReadAll(io.LimitReader(st, 1<<10))
	s.got("a stream of %s from %s: %q, %v", st.Protocol(), st.Conn().RemotePeer(), data, err)
}

// attempts makes them all. Each dials anew if the target has hung up.
func (s *stranger) attempts(ctx context.Context) error {
	store := blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))
	swap := bitswap.New(ctx, bsnet.NewFromIpfsHost(s.host), nil, store, bitswap.WithTracer(tap{s}))
	web := &libp2phttp.Host{StreamHost: s.host}
	rt, err := web.NewConstrainedRoundTripper(s.target)
	if err != nil {
		return errors.Join(err, swap.Close())
	}
	for _, a := range []struct {
		name string
		try  func(ctx context.Context) error
	}{
		{"identify", s.identify},
		{"ping", s.ping},
		{"bitswap", func(ctx context.Context) error {
			_, err := swap.GetBlock(ctx, s.cid)
			return err
		}},
		{"HTTP block", s.get(rt, "/ipfs/"+s.cid.String()+"?format=raw")},
		{"HTTP gateway", s.get(rt, "/ipfs/gateway/ipfs/"+s.cid.String()+"?format=raw")},
		{"HTTP protocols", s.get(rt, "/.well-known/libp2p/protocols")},
	} {
		err := s.attempt(ctx, a.try)
		if err == nil {
			s.got("an answer to %s", a.name)
			continue
		}
		s.mu.Lock()
		s.report.Failures = append(s.report.Failures, a.name+": "+err.Error())
		s.mu.Unlock()
	}
	return swap.Close()
}

func (s *stranger) attempt(ctx context.Context, try func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if n, ok := s.host.Network().(*swarm.Swarm); ok {
		n.Backoff().Clear(s.target.ID) // it does not give up
	}
	if err := s.host.Connect(ctx, s.target); err != nil {
		return err
	}
	return try(ctx)
}

// identify waits for the target to say what it is.
func (s *stranger) identify(ctx context.Context) error {
	for {
		protocols, err := s.host.Peerstore().GetProtocols(s.target.ID)
		if err != nil {
			return err
		}
		if len(protocols) > 0 {
			slices.Sort(protocols)
			s.got("the protocols %v", protocols)
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *stranger) ping(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx) // ends the pinging
	defer cancel()
	return (<-ping.Ping(ctx, s.host, s.target.ID)).Error
}

func (s *stranger) get(rt http.RoundTripper, path string) func(context.Context) error {
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, path, nil)
		if err != nil {
			return err
		}
		resp, err := rt.RoundTrip(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		s.got("HTTP %s: %s: %q, %v", path, resp.Status, body, err)
		return nil
	}
}

// tap writes down the messages of bitswap that the target sends.
type tap struct{ *stranger }

func (t tap) MessageSent(peer.ID, bsmsg.BitSwapMessage) {}

func (t tap) MessageReceived(from peer.ID, m bsmsg.BitSwapMessage) {
	var wants, blocks []cid.Cid
	for _, e := range m.Wantlist() {
		wants = append(wants, e.Cid)
	}
	for _, b := range m.Blocks() {
		blocks = append(blocks, b.Cid())
	}
	t.got("a bitswap message of %s: wants %v, blocks %v, has %v, has not %v", from, wants, blocks, m.Haves(), m.DontHaves())
}
