package node

import (
	"bytes"
	"context"
	"sync"
	"time"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/exchange"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// The server's tuning: large messages, many at once. With boxo's defaults one
// peer gets half as much in the same time.
const (
	serveWorkers      = 64
	outstandingBytes  = 16 << 20 // to one peer
	messageBytes      = 1 << 20
	queuedWants       = 16 << 10 // of one peer
	blockstoreWorkers = 32
)

// newBitswap starts bitswap, which serves and finds the rest of the IPFS world.
func newBitswap(n *Node) *bitswap.Bitswap {
	return bitswap.New(n.ctx, bsnet.NewFromIpfsHost(n.host), nil, n.store,
		bitswap.TaskWorkerCount(serveWorkers),
		bitswap.EngineTaskWorkerCount(serveWorkers),
		bitswap.EngineBlockstoreWorkerCount(blockstoreWorkers),
		bitswap.MaxOutstandingBytesPerPeer(outstandingBytes),
		bitswap.WithTargetMessageSize(messageBytes),
		bitswap.MaxQueuedWantlistEntriesPerPeer(queuedWants),
		bitswap.WithoutDuplicatedBlockStats(),
	)
}

// swap asks for blocks by bitswap until all are here, however they came, or ctx
// ends. A session that brings nothing for a while is replaced by a new one,
// which asks all peers again: one whose peers have left would wait for ever.
func (n *Node) swap(ctx context.Context, cids []cid.Cid) {
	missing := make(map[cid.Cid]bool, len(cids))
	for _, c := range cids {
		missing[c] = true
	}
	n.swapping.add(cids, 1)
	defer n.swapping.add(cids, -1)
	retry := min(max(n.s.FetchTimeout/4, 100*time.Millisecond), 5*time.Second)
	for len(missing) > 0 && ctx.Err() == nil {
		if len(n.host.Network().Peers()) < len(n.s.peers) {
			n.peering.wake()
		}
		rest := make([]cid.Cid, 0, len(missing))
		for _, c := range cids {
			if missing[c] {
				rest = append(rest, c)
			}
		}
		n.round(ctx, rest, retry, func(b blocks.Block) {
			if missing[b.Cid()] {
				delete(missing, b.Cid())
				n.swapped(b)
			}
		})
	}
}

// round asks for blocks in one session until all are there, ctx ends, or
// nothing arrives for the time of retry.
func (n *Node) round(ctx context.Context, cids []cid.Cid, retry time.Duration, fn func(blocks.Block)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := n.sessions.get(len(cids), n.peering.losses.Load())
	ch, err := s.GetBlocks(ctx, cids)
	if err != nil {
		n.sessions.drop(s)
		return // the session or ctx has ended: the caller looks which
	}
	idle := time.NewTimer(retry)
	defer idle.Stop()
	for range cids {
		select {
		case b, ok := <-ch:
			if !ok {
				n.sessions.drop(s)
				return
			}
			fn(b)
			idle.Reset(retry)
		case <-idle.C:
			n.sessions.drop(s)
			return
		}
	}
	n.sessions.put(s)
}

// swapped takes in a block that bitswap gives: from a peer, or because
// kept told it. Its hash needs no check: bitswap computes the CID of what it
// receives. The reader gets it before the disk.
func (n *Node) swapped(b blocks.Block) {
	if len(b.RawData()) > ipfs.MaxBlockSize {
		n.s.Log.Warn("a block over the limit was not taken", "cid", b.Cid().String(), "bytes", len(b.RawData()))
		return
	}
	n.direct.Arrived(b, n.kept) // it was paid for, so it is kept even if the reader wants no more
}

// kept stores a block that came from the network, and tells those who wait for
// it in bitswap, here and elsewhere. The block's data are lent.
func (n *Node) kept(b blocks.Block) {
	n.store.Keep(b)
	// To peers bitswap sends what it reads from the store; a session here would
	// hold what it is told.
	err := n.bitswap.Server.NotifyNewBlocks(n.ctx, b)
	if err == nil && n.swapping.has(b.Cid()) {
		var own blocks.Block
		if own, err = blocks.NewBlockWithCid(bytes.Clone(b.RawData()), b.Cid()); err == nil {
			err = n.bitswap.Client.NotifyNewBlocks(n.ctx, own)
		}
	}
	if err != nil && n.ctx.Err() == nil {
		n.s.Log.Debug("those who wait for a block were not told of it", "cid", b.Cid().String(), "err", err)
	}
}

// swapping counts, by CID, who waits for a block from bitswap.
type swapping struct {
	mu sync.Mutex
	by map[cid.Cid]int
}

func (s *swapping) add(cids []cid.Cid, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil {
		s.by = make(map[cid.Cid]int)
	}
	for _, c := range cids {
		if s.by[c] += n; s.by[c] == 0 {
			delete(s.by, c)
		}
	}
}

func (s *swapping) has(c cid.Cid) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.by[c] > 0
}

// fetcher is a bitswap session.
type fetcher = exchange.Fetcher

// Limits on the sessions that are kept.
const (
	maxIdleSessions  = 16
	maxSessionBlocks = 8192 // a session remembers every CID it ever wanted
)

// sessions keeps bitswap sessions that are idle. One that found its peers asks
// them at once; a new one asks everybody who has the block first, which costs
// a round trip. A session serves one Get at a time, because when one caller
// leaves, bitswap cancels the want for the others in its session too.
type sessions struct {
	open func() (context.CancelFunc, fetcher)

	mu   sync.Mutex
	idle []*session
}

type session struct {
	fetcher
	cancel context.CancelFunc
	blocks int   // asked for so far
	losses int64 // of connections, before it was opened
}

// get returns a session for so many blocks. Those from before the last loss of a
// connection go: they may know only who has left, and would not look further.
func (s *sessions) get(blocks int, losses int64) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.idle) > 0 {
		last := s.idle[len(s.idle)-1]
		s.idle = s.idle[:len(s.idle)-1]
		if last.losses == losses && last.blocks < maxSessionBlocks {
			last.blocks += blocks
			return last
		}
		last.cancel()
	}
	cancel, f := s.open()
	return &session{fetcher: f, cancel: cancel, blocks: blocks, losses: losses}
}

// put gives a session back that has no wants left.
func (s *sessions) put(x *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.idle) == maxIdleSessions {
		x.cancel()
		return
	}
	s.idle = append(s.idle, x)
}

// drop ends a session.
func (s *sessions) drop(x *session) { x.cancel() }
