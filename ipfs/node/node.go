// Package node is the embedded IPFS node: a libp2p host, a store of blocks on
// disk, and two ways to get blocks of others and to serve them: directly
// (ipfs/direct) from nodes like this one, and by bitswap from the rest of the
// IPFS world. It implements [ipfs.Blocks].
//
// A node is private unless it is told otherwise, and fails closed. It talks to
// the configured peers, or to whoever has the swarm key, and to no one else:
// there is no public DHT, no bootstrap list, no relay and no gateway in it. It
// serves what it holds.
package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/boxo/bitswap"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/direct"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store"
)

// Node is a running node. It is safe for concurrent use. Use [Open].
type Node struct {
	s        settings
	lock     *os.File
	store    *store.Store
	host     host.Host
	peering  *peering // found.peering
	found    found
	direct   *direct.Exchange
	bitswap  *bitswap.Bitswap
	swapping swapping
	holders  holders
	opened   chan struct{} // closed when the node is complete
	tasks    sync.WaitGroup

	ctx      context.Context // of the bitswap sessions
	cancel   context.CancelFunc
	sessions sessions
	close    sync.Once
	closeErr error

	blocksFetched, bytesFetched atomic.Int64
}

var _ ipfs.Blocks = (*Node)(nil)

// Open starts a node. It returns when the node listens; peers are connected in
// the background. ctx is for the opening alone.
func Open(ctx context.Context, c Config) (n *Node, err error) {
	s, err := c.check()
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	n = &Node{s: s, opened: make(chan struct{})}
	n.holders = holders{told: make(map[string]cid.Cid), tried: make(map[cid.Cid]time.Time)}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
			n = nil
		}
	}()
	if n.lock, err = lockDir(s.Dir); err != nil {
		return n, err
	}
	key, err := loadIdentity(filepath.Join(s.Dir, "identity.key"))
	if err != nil {
		return n, err
	}
	s.Store.OnRemove = n.removed
	s.Store.OnPin = n.pinned
	if n.store, err = store.Open(s.Dir, s.Store, s.Log); err != nil {
		return n, err
	}
	if err = n.openHost(key); err != nil {
		return n, err
	}
	n.bitswap = newBitswap(n)
	n.sessions.open = func() (context.CancelFunc, fetcher) {
		ctx, cancel := context.WithCancel(n.ctx)
		return cancel, n.bitswap.NewSession(ctx)
	}
	n.direct, err = direct.New(direct.Config{
		Host: n.host, Store: local{n.store, n.Tables()}, Keep: n.kept, Ban: n.Ban, Log: s.Log,
	})
	if err != nil {
		return n, err
	}
	if err = n.startDiscovery(key); err != nil {
		return n, err
	}
	close(n.opened)
	n.tasks.Go(n.announceAll)
	return n, nil
}

// lockDir keeps other processes out of a directory while the file is open.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		err = fmt.Errorf("node: %s is in use by another process: %w; stop that one, or configure another directory", dir, err)
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Close ends the node: connections, goroutines, and the blocks that are not
// written yet are. It may be called more than once.
func (n *Node) Close() error {
	n.close.Do(func() {
		n.cancel()
		n.tasks.Wait()
		errs := []error{n.stopDiscovery()}
		if n.direct != nil {
			errs = append(errs, n.direct.Close())
		}
		if n.bitswap != nil {
			errs = append(errs, n.bitswap.Close())
		}
		if n.host != nil {
			errs = append(errs, n.host.Close())
		}
		if n.store != nil {
			n.store.Close()
		}
		if n.lock != nil {
			errs = append(errs, n.lock.Close())
		}
		n.closeErr = errors.Join(errs...)
	})
	return n.closeErr
}

// ID returns the node's peer id.
func (n *Node) ID() string { return n.host.ID().String() }

// Addrs returns the multiaddrs at which the node can be dialed, each with
// /p2p/ID at its end: what other nodes have in their Config.Peers.
func (n *Node) Addrs() []string {
	return fullAddrs(n.host.ID(), n.host.Addrs())
}

// PeersConnected returns the multiaddrs of the connected peers, each with
// /p2p/ID at its end, sorted.
func (n *Node) PeersConnected() []string {
	var out []string
	for _, c := range n.host.Network().Conns() {
		out = append(out, fullAddrs(c.RemotePeer(), []ma.Multiaddr{c.RemoteMultiaddr()})...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func fullAddrs(id peer.ID, addrs []ma.Multiaddr) []string {
	out := make([]string, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, a.String()+"/p2p/"+id.String())
	}
	return out
}

// Tables is the directory of leaf tables: whoever opens files of this node gives
// it to [ipfs.OpenFile], so that the node knows which blocks make up a file.
func (n *Node) Tables() string { return filepath.Join(n.s.Dir, "leaves") }

// isolated tells whether nobody can ever connect.
func (n *Node) isolated() bool { return n.s.isolated() }

// Has tells whether the node holds the block of c itself, as far as can be seen
// without reading it.
func (n *Node) Has(ctx context.Context, c cid.Cid) (bool, error) {
	if err := ipfs.CheckCID(c); err != nil {
		return false, err
	}
	if _, ok := ipfs.Known(c); ok {
		return true, nil
	}
	return n.store.Has(ctx, c)
}

// Put stores blocks and serves them from then on. Each is verified first. They
// are on the disk for certain after [Node.Sync].
func (n *Node) Put(ctx context.Context, bs ...blocks.Block) error {
	keep := make([]blocks.Block, 0, len(bs))
	for _, b := range bs {
		if err := ipfs.Verify(b.Cid(), b.RawData()); err != nil {
			return err
		}
		if _, ok := ipfs.Known(b.Cid()); !ok {
			keep = append(keep, b)
		}
	}
	if err := n.store.PutMany(ctx, keep); err != nil {
		return err
	}
	for _, b := range keep {
		n.direct.Arrived(b, nil)
	}
	return n.bitswap.NotifyNewBlocks(ctx, keep...)
}

// Sync returns when all blocks put before are on stable storage.
func (n *Node) Sync(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return n.store.Sync()
}

// Stats counts since the node was opened.
type Stats struct {
	BlocksFetched, BytesFetched   int64 // handed over by Get, from the network
	BlocksReceived, BytesReceived int64 // from the network; with what came twice or too late
	BlocksSent, BytesSent         int64 // to the network
}

// Stats returns the counts. Bytes are those of the blocks, without what the
// protocols add.
func (n *Node) Stats() Stats {
	d := n.direct.Stats()
	s := Stats{
		BlocksFetched: n.blocksFetched.Load(), BytesFetched: n.bytesFetched.Load(),
		BlocksReceived: d.BlocksReceived, BytesReceived: d.BytesReceived,
		BlocksSent: d.BlocksSent, BytesSent: d.BytesSent,
	}
	if b, err := n.bitswap.Stat(); err == nil {
		s.BlocksReceived += int64(b.BlocksReceived)
		s.BytesReceived += int64(b.DataReceived)
		s.BlocksSent += int64(b.BlocksSent)
		s.BytesSent += int64(b.DataSent)
	}
	return s
}
