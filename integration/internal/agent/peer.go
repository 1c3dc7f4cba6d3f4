package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
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
	tables    string // directory of leaf tables
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
		blocks: n, tables: n.Tables(), put: n.Put, addrs: n.Addrs(), close: n.Close, files: make(map[string]*ipfs.File),
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
	ctx     context.Context // of the sessions
	cancel  context.CancelFunc
}

var _ ipfs.Blocks = (*reference)(nil)

func openBitswap(ctx context.Context, o Open, opts ...bitswap.Option) (_ *ipfsPeer, err error) {
	r := &reference{}
	r.ctx, r.cancel = context.WithCancel(context.Background())
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
	r.bitswap = bitswap.New(r.ctx, bsnet.NewFromIpfsHost(r.host), nil, r.store, opts...)
	r.session = r.bitswap.NewSession(r.ctx)
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

// Get implements [ipfs.Blocks] by one session, as boxo's users do, and another
// one when it is stuck. What is here already is not looked for elsewhere. One
// call may be under way at a time.
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
	missing := make(map[cid.Cid]bool, len(away))
	for _, c := range away {
		missing[c] = true
	}
	for range sessionTries {
		if err := r.round(ctx, missing, fn); err != nil || len(missing) == 0 {
			return err
		}
		// A session can lose sight of who has what, for ever.
		r.session = r.bitswap.NewSession(r.ctx)
	}
	return fmt.Errorf("bitswap is stuck, with %d of %d blocks missing", len(missing), len(away))
}

// The reference's patience with a session that brings nothing, and how often
// it takes a new one.
const (
	sessionPatience = 5 * time.Second
	sessionTries    = 20
)

// round takes blocks from the session until all are here or none comes.
func (r *reference) round(ctx context.Context, missing map[cid.Cid]bool, fn func(c cid.Cid, data []byte) error) error {
	if len(missing) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch, err := r.session.GetBlocks(ctx, slices.Collect(maps.Keys(missing)))
	if err != nil {
		return err
	}
	idle := time.NewTimer(sessionPatience)
	defer idle.Stop()
	for len(missing) > 0 {
		select {
		case <-idle.C:
			return nil
		case b, ok := <-ch:
			if !ok {
				return ctx.Err()
			}
			idle.Reset(sessionPatience)
			if err := fn(b.Cid(), b.RawData()); err != nil {
				return err
			}
			delete(missing, b.Cid())
			r.store.Keep(b)
			if err := r.bitswap.NotifyNewBlocks(ctx, b); err != nil {
				return err
			}
		}
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
