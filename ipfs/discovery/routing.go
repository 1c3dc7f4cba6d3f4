package discovery

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"github.com/ipfs/go-cid"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p-kad-dht/amino"
	"github.com/libp2p/go-libp2p-kad-dht/records"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"golang.org/x/sync/errgroup"
)

// PrivateProtocol is the protocol of our own DHT. No node of the public network
// speaks it, and ours does not speak theirs.
const PrivateProtocol = privatePrefix + "/kad/1.0.0"

const privatePrefix protocol.ID = "/ipfs-stargz"

// Times. A private network is small and its nodes come and go, so what is said
// there is said often and forgotten soon.
const (
	privateProvideFirst = 2 * time.Minute // then twice that, and so on
	privateProvideEvery = time.Hour
	privateValidity     = 3 * time.Hour
	privateFindTimeout  = 10 * time.Second
	privateTimeout      = 30 * time.Second // of one announcement
	publicProvideEvery  = 22 * time.Hour   // providers are forgotten after 48
	publicFindTimeout   = time.Minute
	publicTimeout       = 3 * time.Minute
)

// ErrNoRouting is returned where there is neither a DHT nor a router to ask.
var ErrNoRouting = errors.New("there is no DHT: ipfs.dht is off, or nobody may connect")

// RoutingConfig is what [NewRouting] needs.
type RoutingConfig struct {
	Host host.Host
	// Public joins the DHT of the IPFS network, as a client: it asks and
	// announces, and keeps no records of strangers.
	Public bool
	// StandIn says that the public network is one of our own, at addresses
	// that are not public.
	StandIn bool
	// NoDHT leaves the DHT out.
	NoDHT bool
	// Bootstrap are the peers through which the public DHT is joined; none:
	// the list of the IPFS network.
	Bootstrap []peer.AddrInfo
	// Routers are the URLs of delegated routers.
	Routers []string
	// Allowed tells whether a peer may be talked to.
	Allowed func(peer.ID) bool
	Log     *slog.Logger
}

// Routing finds who has what, and says what is here. It is safe for concurrent
// use. Use [NewRouting].
type Routing struct {
	c                    RoutingConfig
	dht                  *dht.IpfsDHT // nil: none
	routers              []*router
	said                 *announcer
	findTimeout, timeout time.Duration
}

// NewRouting starts the DHT.
func NewRouting(c RoutingConfig) (_ *Routing, err error) {
	r := &Routing{c: c, findTimeout: privateFindTimeout, timeout: privateTimeout}
	first, every := privateProvideFirst, privateProvideEvery
	if c.Public {
		r.findTimeout, r.timeout = publicFindTimeout, publicTimeout
		first, every = publicProvideEvery, publicProvideEvery
	}
	for _, u := range c.Routers {
		r.routers = append(r.routers, newRouter(u))
	}
	if !c.NoDHT {
		if r.dht, err = dht.New(c.Host, r.options()...); err != nil {
			return nil, fmt.Errorf("discovery: DHT: %w", err)
		}
		if err := r.dht.Bootstrap(context.Background()); err != nil {
			return nil, errors.Join(fmt.Errorf("discovery: DHT: %w", err), r.dht.Close())
		}
	}
	r.said = startAnnouncer(r.announce, first, every, c.Host.Network(), c.Log)
	return r, nil
}

func (r *Routing) options() []dht.Option {
	if !r.c.Public {
		return []dht.Option{
			dht.ProtocolPrefix(privatePrefix),
			dht.Mode(dht.ModeServer),
			dht.Datastore(newBounded(maxRecords)),
			dht.ProviderManagerOpts(records.ProvideValidity(privateValidity), records.CleanupInterval(privateValidity/6)),
			dht.QueryFilter(func(_ any, p peer.AddrInfo) bool { return r.c.Allowed(p.ID) }),
			dht.RoutingTableFilter(func(_ any, p peer.ID) bool { return r.c.Allowed(p) }),
		}
	}
	bootstrap := r.c.Bootstrap
	if len(bootstrap) == 0 {
		bootstrap = dht.GetDefaultBootstrapPeerAddrInfos()
	}
	opts := []dht.Option{
		dht.ProtocolPrefix(amino.ProtocolPrefix),
		dht.Mode(dht.ModeClient),
		dht.BootstrapPeers(bootstrap...),
	}
	if !r.c.StandIn {
		opts = append(opts, dht.QueryFilter(dht.PublicQueryFilter), dht.RoutingTableFilter(dht.PublicRoutingTableFilter))
	}
	return opts
}

// Close ends the DHT and the announcing.
func (r *Routing) Close() error {
	r.said.stop()
	for _, x := range r.routers {
		x.close()
	}
	if r.dht == nil {
		return nil
	}
	return r.dht.Close()
}

// Provide announces a root now, in the background, and again and again until
// [Routing.Withdraw] or the end. It is not kept over a restart. A root that is
// announced already stays so. Without a DHT it returns [ErrNoRouting].
func (r *Routing) Provide(root cid.Cid) error {
	if r.dht == nil {
		return ErrNoRouting
	}
	return r.said.provide(root)
}

// Withdraw ends the announcing of a root. What others were told they forget in
// their own time: three hours in a private network, two days in the public one.
func (r *Routing) Withdraw(root cid.Cid) { r.said.withdraw(root) }

// announce says once that we have a root.
func (r *Routing) announce(ctx context.Context, root cid.Cid) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	return r.dht.Provide(ctx, root, true)
}

// FindProviders yields peers that say they have the root, each once, as they are
// found: with addresses, allowed, not ourselves, limit at most. It asks the DHT
// and the routers at once and ends by itself after a bounded time (10 s in a
// private network, a minute in the public one). Whether they tell the truth
// shows when they are asked for a block.
func (r *Routing) FindProviders(ctx context.Context, root cid.Cid, limit int) iter.Seq[peer.AddrInfo] {
	return func(yield func(peer.AddrInfo) bool) {
		if limit <= 0 || !root.Defined() {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, r.findTimeout)
		defer cancel()
		found := make(chan peer.AddrInfo)
		var asked errgroup.Group
		if r.dht != nil {
			asked.Go(func() error {
				for p := range r.dht.FindProvidersAsync(ctx, root, 0) {
					r.offer(ctx, found, p)
				}
				return nil
			})
		}
		for _, x := range r.routers {
			asked.Go(func() error {
				err := x.findProviders(ctx, root, limit, func(p peer.AddrInfo) { r.offer(ctx, found, p) })
				if err != nil && ctx.Err() == nil {
					r.c.Log.Warn("a delegated router gave no answer", "router", x.url, "err", err)
				}
				return nil
			})
		}
		go func() {
			_ = asked.Wait() // they return none
			close(found)
		}()
		seen := make(map[peer.ID]bool)
		for p := range found {
			if seen[p.ID] || len(seen) == limit {
				continue
			}
			seen[p.ID] = true
			if !yield(p) || len(seen) == limit {
				break
			}
		}
		cancel()
		for range found { // until all have left
		}
	}
}

// offer hands over a peer that is of use.
func (r *Routing) offer(ctx context.Context, to chan<- peer.AddrInfo, p peer.AddrInfo) {
	if p.ID == r.c.Host.ID() || !r.c.Allowed(p.ID) {
		return
	}
	if len(p.Addrs) == 0 {
		p.Addrs = r.c.Host.Peerstore().Addrs(p.ID)
	}
	if len(p.Addrs) == 0 && r.dht != nil {
		full, err := r.dht.FindPeer(ctx, p.ID)
		if err != nil {
			return
		}
		p = full
	}
	if len(p.Addrs) == 0 {
		return
	}
	select {
	case to <- p:
	case <-ctx.Done():
	}
}

// FindPeer returns the addresses of a peer.
func (r *Routing) FindPeer(ctx context.Context, id peer.ID) (peer.AddrInfo, error) {
	if r.dht == nil {
		return peer.AddrInfo{}, ErrNoRouting
	}
	ctx, cancel := context.WithTimeout(ctx, r.findTimeout)
	defer cancel()
	info, err := r.dht.FindPeer(ctx, id)
	if err != nil {
		return info, fmt.Errorf("discovery: peer %s: %w", id, err)
	}
	return info, nil
}

// PutValue gives a signed record (of IPNS) to the peers that keep it for others,
// in a bounded time. It is an error when nobody took it.
func (r *Routing) PutValue(ctx context.Context, key string, value []byte) error {
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	taken, errs := false, []error{}
	note := func(err error) {
		taken = taken || err == nil
		errs = append(errs, err)
	}
	if r.dht != nil {
		note(r.dht.PutValue(ctx, key, value))
	}
	for _, x := range r.routers {
		note(x.putValue(ctx, key, value))
	}
	switch {
	case taken:
		return nil
	case len(errs) == 0:
		return ErrNoRouting
	}
	return fmt.Errorf("discovery: nobody took the record: %w", errors.Join(errs...))
}

// GetValue returns the best record under a key, checked for its signature and
// its time, in a bounded time.
func (r *Routing) GetValue(ctx context.Context, key string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, r.findTimeout)
	defer cancel()
	errs := []error{}
	if r.dht != nil {
		v, err := r.dht.GetValue(ctx, key)
		if v != nil {
			return v, nil
		}
		errs = append(errs, err)
	}
	for _, x := range r.routers {
		v, err := x.getValue(ctx, key)
		if err == nil {
			return v, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, ErrNoRouting
	}
	return nil, fmt.Errorf("discovery: no record found: %w", errors.Join(errs...))
}
