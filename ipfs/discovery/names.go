package discovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/sync/errgroup"
)

// Bounds of names.
const (
	askNamesEvery  = 15 * time.Second
	addrsPerName   = 1024 // a name with more is cut
	dnsaddrDepth   = 4    // of names that lead to names
	probesAtOnce   = 16
	probeTimeout   = 5 * time.Second
	resolveTimeout = 10 * time.Second
)

// NamesConfig is what [StartNames] needs.
type NamesConfig struct {
	// Names are multiaddrs without /p2p/ID: "/dns4/NAME/tcp/4001" is every
	// address that the name has, "/dnsaddr/NAME" what its TXT records say. An
	// IP address is taken as it is.
	Names []ma.Multiaddr
	// Resolver is nil for the system's.
	Resolver madns.BasicResolver
	// Key is the swarm key; nil: there is none.
	Key  pnet.PSK
	Self peer.ID
	// Allowed tells whether a peer may be talked to.
	Allowed func(peer.ID) bool
	// Connected tells whether a peer is connected.
	Connected func(peer.ID) bool
	// Found is called with each peer that answers, and again when its addresses
	// change; Lost when no name leads to it any more.
	Found func(peer.AddrInfo)
	Lost  func(peer.ID)
	Log   *slog.Logger
}

// Names watches names of the DNS behind which nodes come and go, such as a
// headless service of Kubernetes. Use [StartNames].
type Names struct {
	NamesConfig
	prober *prober
	txt    swarm.ResolverFromMaDNS
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// StartNames asks for the names at once and every 15 s from then on.
func StartNames(c NamesConfig) (*Names, error) {
	n, err := newNames(c)
	if err != nil {
		return nil, err
	}
	var ctx context.Context
	ctx, n.cancel = context.WithCancel(context.Background())
	n.done.Go(func() { n.watch(ctx) })
	return n, nil
}

func newNames(c NamesConfig) (*Names, error) {
	if c.Resolver == nil {
		c.Resolver = net.DefaultResolver
	}
	p, err := newProber(c.Key)
	if err != nil {
		return nil, err
	}
	txt, err := madns.NewResolver(madns.WithDefaultResolver(c.Resolver))
	if err != nil {
		return nil, fmt.Errorf("discovery: DNS: %w", err)
	}
	return &Names{NamesConfig: c, prober: p, txt: swarm.ResolverFromMaDNS{Resolver: txt}}, nil
}

// Close ends the watching.
func (n *Names) Close() {
	n.cancel()
	n.done.Wait()
}

func (n *Names) watch(ctx context.Context) {
	w := &watched{names: make(map[string]*name), told: make(map[peer.ID][]ma.Multiaddr)}
	for {
		n.round(ctx, w)
		// All nodes of a swarm start at once, and should not ask at once.
		t := time.NewTimer(askNamesEvery*3/4 + rand.N(askNamesEvery/2))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// watched is what the rounds so far found.
type watched struct {
	names map[string]*name
	told  map[peer.ID][]ma.Multiaddr
}

// name is the addresses of one name, with who answers there ("": not known).
type name struct {
	peers   map[string]peer.ID // by multiaddr
	failing bool
}

func (n *Names) round(ctx context.Context, w *watched) {
	now := make(map[peer.ID][]ma.Multiaddr)
	for _, m := range n.Names {
		x := w.names[m.String()]
		if x == nil {
			x = &name{peers: make(map[string]peer.ID)}
			w.names[m.String()] = x
		}
		n.ask(ctx, m, x)
		if ctx.Err() != nil {
			return
		}
		for s, id := range x.peers {
			if id != "" && id != n.Self && n.Allowed(id) {
				now[id] = append(now[id], ma.StringCast(s))
			}
		}
	}
	for id, addrs := range now {
		slices.SortFunc(addrs, ma.Multiaddr.Compare)
		if !slices.EqualFunc(addrs, w.told[id], ma.Multiaddr.Equal) {
			n.Found(peer.AddrInfo{ID: id, Addrs: addrs})
		}
	}
	for id := range w.told {
		if now[id] == nil {
			n.Lost(id)
		}
	}
	w.told = now
}

// ask resolves one name and learns who answers at its addresses. When the DNS
// gives no answer, what it said before holds.
func (n *Names) ask(ctx context.Context, m ma.Multiaddr, x *name) {
	addrs, err := n.resolve(ctx, m)
	if err != nil {
		if ctx.Err() == nil && !x.failing {
			n.Log.Warn("a peer's name cannot be resolved; trying on", "name", m.String(), "err", err)
		}
		x.failing = true
		return
	}
	x.failing = false
	before := x.peers
	x.peers = make(map[string]peer.ID, len(addrs))
	var mu sync.Mutex
	var probes errgroup.Group
	probes.SetLimit(probesAtOnce)
	for _, full := range addrs {
		a, id := peer.SplitAddr(full)
		if a == nil {
			continue
		}
		s := a.String()
		if id == "" {
			id = before[s]
		}
		mu.Lock()
		x.peers[s] = id
		mu.Unlock()
		// Where nobody is connected, somebody else may have moved in.
		if has(full, ma.P_P2P) || !has(full, ma.P_TCP) || id != "" && (id == n.Self || n.Connected(id)) {
			continue
		}
		probes.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, probeTimeout)
			defer cancel()
			who, err := n.prober.whoIs(ctx, a)
			if err != nil {
				n.Log.Debug("nobody of ours answers", "name", m.String(), "addr", s, "err", err)
				return nil
			}
			if who != n.Self && !n.Allowed(who) {
				n.Log.Debug("who answers is not allowed", "name", m.String(), "addr", s, "peer", who.String())
			}
			mu.Lock()
			defer mu.Unlock()
			x.peers[s] = who
			return nil
		})
	}
	_ = probes.Wait() // they return none
}

// resolve returns the IP addresses of a name. A name that does not exist has
// none.
func (n *Names) resolve(ctx context.Context, m ma.Multiaddr) (out []ma.Multiaddr, err error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	todo := []ma.Multiaddr{m}
	if has(m, ma.P_DNSADDR) {
		if todo, err = n.txt.ResolveDNSAddr(ctx, "", m, dnsaddrDepth, addrsPerName); err != nil {
			return nil, ignoreMissing(err)
		}
	}
	for _, a := range todo {
		more, err := n.addresses(ctx, a)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out[:min(len(out), addrsPerName)], nil
}

// addresses puts every address that a name has in its place. (go-multiaddr-dns
// stops at a hundred.)
func (n *Names) addresses(ctx context.Context, a ma.Multiaddr) (out []ma.Multiaddr, err error) {
	first, rest := ma.SplitFirst(a)
	if first == nil {
		return nil, nil
	}
	code := first.Protocol().Code
	if code != ma.P_DNS && code != ma.P_DNS4 && code != ma.P_DNS6 {
		return []ma.Multiaddr{a}, nil
	}
	ips, err := n.Resolver.LookupIPAddr(ctx, first.Value())
	if err != nil {
		return nil, ignoreMissing(err)
	}
	for _, ip := range ips {
		is4 := ip.IP.To4() != nil
		if code == ma.P_DNS4 && !is4 || code == ma.P_DNS6 && is4 {
			continue
		}
		m, err := manet.FromIP(ip.IP)
		if err != nil {
			return nil, err
		}
		out = append(out, m.Encapsulate(rest))
	}
	return out, nil
}

func ignoreMissing(err error) error {
	var d *net.DNSError
	if errors.As(err, &d) && d.IsNotFound {
		return nil
	}
	return err
}

func has(a ma.Multiaddr, code int) bool {
	_, err := a.ValueForProtocol(code)
	return err == nil
}
