package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/node"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store"
)

// ipfsPeer is what an agent runs: ours, or the reference.
type ipfsPeer struct {
	blocks    ipfs.Blocks
	put       func(ctx context.Context, bs ...blocks.Block) error
	addrs     []string
	connected func() int // peers
	close     func() error
	files     map[string]*ipfs.File // opened so far, by root
}

func openPeer(ctx context.Context, o Open) (*ipfsPeer, error) {
	switch o.Kind {
	case Node:
		return openNode(ctx, o)
	case Bitswap:
		return openBitswap(ctx, o)
	case BitswapTuned:
		// What ipfs/node's own bitswap has.
		return openBitswap(ctx, o,
			bitswap.TaskWorkerCount(64),
			bitswap.EngineTaskWorkerCount(64),
			bitswap.EngineBlockstoreWorkerCount(32),
			bitswap.MaxOutstandingBytesPerPeer(16<<20),
			bitswap.WithTargetMessageSize(1<<20),
			bitswap.MaxQueuedWantlistEntriesPerPeer(16<<10),
			bitswap.WithoutDuplicatedBlockStats(),
		)
	default:
		return nil, fmt.Errorf("there is no kind of peer %q", o.Kind)
	}
}

func openNode(ctx context.Context, o Open) (*ipfsPeer, error) {
	n, err := node.Open(ctx, node.Config{
		Dir: o.Dir, Listen: o.Listen, Announce: o.Announce, Peers: o.Peers, FetchTimeout: o.FetchTimeout,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return nil, err
	}
	return &ipfsPeer{
		blocks: n, put: n.Put, addrs: n.Addrs(), close: n.Close, files: make(map[string]*ipfs.File),
		connected: func() int { return len(n.PeersConnected()) },
	}, nil
}

// identify opens a node that reaches nobody, for its id.
func identify(ctx context.Context, i Identify) (Identified, error) {
	n, err := node.Open(ctx, node.Config{Dir: i.Dir})
	if err != nil {
		return Identified{}, err
	}
	return Identified{n.ID()}, n.Close()
}

// reference is a plain bitswap peer with a store on disk like ours.
type reference struct {
	host    host.Host
	store   *store.Store
	bitswap *bitswap.Bitswap
	session exchange.Fetcher
	cancel  context.CancelFunc
}

var _ ipfs.Blocks = (*reference)(nil)

func openBitswap(ctx context.Context, o Open, opts ...bitswap.Option) (_ *ipfsPeer, err error) {
	r := &reference{}
	bctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	if r.store, err = store.Open(o.Dir, store.Options{}, slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
		return nil, err
	}
	r.host, err = libp2p.New(
		libp2p.ListenAddrStrings(o.Listen...), libp2p.Transport(tcp.NewTCPTransport), libp2p.DisableRelay(),
		libp2p.ResourceManager(&network.NullResourceManager{}), libp2p.DisableIdentifyAddressDiscovery(), libp2p.DisableMetrics(),
	)
	if err != nil {
		return nil, err
	}
	r.bitswap = bitswap.New(bctx, bsnet.NewFromIpfsHost(r.host), nil, r.store, opts...)
	r.session = r.bitswap.NewSession(bctx)
	for _, p := range o.Peers {
		info, err := peer.AddrInfoFromString(p)
		if err == nil && len(info.Addrs) > 0 {
			err = r.host.Connect(ctx, *info)
		}
		if err != nil {
			return nil, fmt.Errorf("peer %s: %w", p, err)
		}
	}
	addrs, err := peer.AddrInfoToP2pAddrs(&peer.AddrInfo{ID: r.host.ID(), Addrs: r.host.Addrs()})
	if err != nil {
		return nil, err
	}
	return &ipfsPeer{
		blocks: r, addrs: texts(addrs), close: r.Close, files: make(map[string]*ipfs.File),
		put: func(ctx context.Context, bs ...blocks.Block) error {
			return errors.Join(r.store.PutMany(ctx, bs), r.bitswap.NotifyNewBlocks(ctx, bs...))
		},
		connected: func() int { return len(r.host.Network().Peers()) },
	}, nil
}

func texts(addrs []ma.Multiaddr) (out []string) {
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return out
}

// Get implements [ipfs.Blocks] by one session, as boxo's users do. What is
// here already is not looked for elsewhere.
func (r *reference) Get(ctx context.Context, w ipfs.Want, fn func(c cid.Cid, data []byte) error) error {
	var away []cid.Cid
	for _, c := range w.CIDs {
		if ok, err := r.store.Has(ctx, c); err != nil || !ok {
			away = append(away, c)
			continue
		}
		b, err := r.store.Get(ctx, c)
		if err == nil {
			err = fn(c, b.RawData())
		}
		if err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	ch, err := r.session.GetBlocks(ctx, away)
	if err != nil {
		return err
	}
	n := 0
	for b := range ch {
		if err := fn(b.Cid(), b.RawData()); err != nil {
			return err
		}
		r.store.PutLater(b)
		if err := r.bitswap.NotifyNewBlocks(ctx, b); err != nil {
			return err
		}
		n++
	}
	if n < len(away) {
		return fmt.Errorf("bitswap ended after %d of %d blocks: %w", n, len(away), ctx.Err())
	}
	return nil
}

// Close ends the peer.
func (r *reference) Close() error {
	r.cancel()
	var errs []error
	if r.bitswap != nil {
		errs = append(errs, r.bitswap.Close())
	}
	if r.host != nil {
		errs = append(errs, r.host.Close())
	}
	if r.store != nil {
		r.store.Close()
	}
	return errors.Join(errs...)
}
