package direct

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/net/gostream"
)

// Config is what an Exchange stands on. All of it is needed.
type Config struct {
	Host  host.Host
	Store Store
	// Keep is called with each block that was fetched, after those who wait
	// for it have got it. Its data are lent, until Keep returns. That may take
	// its time: the peer that the block came from is asked for less meanwhile.
	Keep func(b blocks.Block)
	// Ban is told of a peer that sent something else than what it was asked
	// for. Its connections are closed in any case.
	Ban func(p peer.ID, reason string)
	Log *slog.Logger
}

// Exchange fetches blocks from connected peers, and serves those of its store.
// It is safe for concurrent use. Use [New].
type Exchange struct {
	Config
	inventory *inventory
	watchers  watchers
	client    *client
	server    *http.Server
	events    event.Subscription
	ctx       context.Context
	cancel    context.CancelFunc
	done      sync.WaitGroup
	close     sync.Once
	sent      atomic.Int64
	served    atomic.Int64

	mu      sync.Mutex // let go by unlock
	remotes map[peer.ID]*remote
	// strangers are connected, and it is not known yet what they speak.
	strangers map[peer.ID]bool
	files     map[cid.Cid]*file
	wants     map[cid.Cid]*want
	landing   map[string]*landing // by multihash
	// To be looked at by dispatch: what somebody waits for, and what nobody does.
	queue, bulkQueue []*want
	urgent           int // wants that somebody waits for and that are on their way
	// Under way in bulk, at all peers: requests, and their bytes.
	bulkFlights, inBulk int
	timer               *time.Timer // of the next dispatch
	timerAt             time.Time
	stats               Stats
	// What is told to others once mu is let go.
	lost []loss
	bans []ban
}

type loss struct {
	asker *asker
	cid   cid.Cid
}

type ban struct {
	peer   peer.ID
	reason string
}

// New starts an exchange.
func New(c Config) (*Exchange, error) {
	x := &Exchange{
		Config: c, inventory: newInventory(c.Store), client: newClient(c.Host),
		remotes: make(map[peer.ID]*remote), strangers: make(map[peer.ID]bool),
		files: make(map[cid.Cid]*file), wants: make(map[cid.Cid]*want), landing: make(map[string]*landing),
	}
	x.ctx, x.cancel = context.WithCancel(context.Background())
	x.watchers.inventory, x.watchers.ctx = x.inventory, x.ctx
	x.server = newServer(c.Store, func(n int) {
		x.sent.Add(int64(n))
		x.served.Add(1)
	})
	var err error
	x.events, err = c.Host.EventBus().Subscribe([]any{
		new(event.EvtPeerIdentificationCompleted), new(event.EvtPeerIdentificationFailed),
		new(event.EvtPeerProtocolsUpdated), new(event.EvtPeerConnectednessChanged),
	}, eventbus.Name("ipfs-stargz/direct"), eventbus.BufSize(256))
	if err != nil {
		x.cancel()
		return nil, fmt.Errorf("direct: %w", err)
	}
	// A peer that has sent its request may close its side; to the server of
	// net/http that would look like a connection that is gone.
	l, err := gostream.Listen(c.Host, httpProtocol, gostream.IgnoreEOF())
	if err != nil {
		x.cancel()
		return nil, errors.Join(fmt.Errorf("direct: %w", err), x.events.Close())
	}
	x.done.Go(func() {
		if err := x.server.Serve(l); x.ctx.Err() == nil {
			x.Log.Error("blocks are served no longer", "err", err)
		}
	})
	c.Host.SetStreamHandler(haveProtocol, x.watchers.serve)
	x.done.Go(func() { x.peers(x.events) })
	return x, nil
}

// Close ends the exchange: what is under way, and all goroutines.
func (x *Exchange) Close() error {
	var err error
	x.close.Do(func() {
		x.Host.RemoveStreamHandler(haveProtocol)
		x.cancel()
		err = errors.Join(x.server.Close(), x.events.Close())
		x.mu.Lock()
		if x.timer != nil {
			x.timer.Stop()
		}
		for _, f := range x.files {
			if f.forget != nil {
				f.forget.Stop()
			}
		}
		x.unlock()
		x.done.Wait()
		x.watchers.done.Wait()
		x.client.close()
	})
	return err
}

// Stats counts since the exchange was opened.
type Stats struct {
	BlocksReceived, BytesReceived int64 // with what came twice
	BlocksSent, BytesSent         int64
	Hedged                        int64 // times that one more peer was asked for a block that was late
	Failed                        int64 // requests that went wrong
}

// Stats returns the counts.
func (x *Exchange) Stats() Stats {
	x.mu.Lock()
	defer x.unlock()
	s := x.stats
	s.BlocksSent, s.BytesSent = x.served.Load(), x.sent.Load()
	return s
}

// Peers returns the connected peers that blocks can be asked of.
func (x *Exchange) Peers() []peer.ID {
	x.mu.Lock()
	defer x.unlock()
	ids := make([]peer.ID, 0, len(x.remotes))
	for id := range x.remotes {
		ids = append(ids, id)
	}
	return ids
}

// unlock lets mu go, and then tells others what there is to tell.
func (x *Exchange) unlock() {
	lost, bans := x.lost, x.bans
	x.lost, x.bans = nil, nil
	x.mu.Unlock()
	for _, l := range lost {
		l.asker.ending.RLock()
		if !l.asker.over {
			l.asker.lost(l.cid)
		}
		l.asker.ending.RUnlock()
	}
	for _, b := range bans {
		x.Ban(b.peer, b.reason)
		_ = x.Host.Network().ClosePeer(b.peer)
	}
}

// dispatchAt has dispatch called at a time to come, or sooner.
func (x *Exchange) dispatchAt(at time.Time) {
	if x.ctx.Err() != nil || !x.timerAt.IsZero() && !at.Before(x.timerAt) {
		return
	}
	if x.timer != nil {
		x.timer.Stop()
	}
	x.timerAt = at
	var mine *time.Timer
	mine = time.AfterFunc(time.Until(at), func() {
		x.mu.Lock()
		defer x.unlock()
		if x.timer != mine {
			return // replaced by a sooner one
		}
		x.timerAt = time.Time{}
		x.requeue()
		x.dispatch()
	})
	x.timer = mine
}
