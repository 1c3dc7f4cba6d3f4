package node

import (
	"context"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store/pins"
)

// Looking for the holders of a file that no connected peer has.
const (
	findAgain     = 20 * time.Second // not more often for one file
	findAtOnce    = 8                // peers that are connected for it
	connectToThem = 10 * time.Second
)

// holders tells others which files this node has parts of, from the first part
// on until the root goes, and finds others who have parts of those that it
// wants. Who is connected is asked by the direct exchange and needs none of it.
type holders struct {
	mu    sync.Mutex
	told  map[string]cid.Cid // announced, by multihash of the root
	tried map[cid.Cid]time.Time
}

// announce has the node found by those who look for the file under root.
func (n *Node) announce(root cid.Cid) {
	h := &n.holders
	h.mu.Lock()
	_, told := h.told[string(root.Hash())]
	if !told {
		h.told[string(root.Hash())] = root
	}
	h.mu.Unlock()
	if told {
		return
	}
	if err := n.Provide(n.ctx, root); err != nil && n.ctx.Err() == nil {
		n.s.Log.Warn("a file is not announced", "root", root.String(), "err", err)
	}
}

// announceAll announces what was here when the node was opened: each file with
// a leaf table whose root is held, and what is pinned.
func (n *Node) announceAll() {
	entries, err := os.ReadDir(n.Tables())
	if err != nil && !os.IsNotExist(err) {
		n.s.Log.Warn("the files that are here are not announced", "err", err)
	}
	mine := local{n.store, n.Tables()}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ipfs.TableSuffix)
		if c, err := cid.Decode(name); ok && err == nil && mine.Holds(c) && n.ctx.Err() == nil {
			n.announce(c)
		}
	}
	all, err := n.store.Pins(n.ctx)
	if err != nil && n.ctx.Err() == nil {
		n.s.Log.Warn("what is pinned is not announced", "err", err)
	}
	for _, p := range all {
		n.pinned(p)
	}
}

// pinned announces what was pinned: it is here, all of it.
func (n *Node) pinned(p pins.Pin) {
	for _, c := range p.Parts {
		n.announce(c)
	}
}

// removed withdraws what the store has let go.
func (n *Node) removed(cids []cid.Cid) {
	select {
	case <-n.opened:
	case <-n.ctx.Done():
		return
	}
	n.direct.Removed(cids...)
	h := &n.holders
	for _, c := range cids {
		h.mu.Lock()
		root, told := h.told[string(c.Hash())]
		delete(h.told, string(c.Hash()))
		h.mu.Unlock()
		if told {
			n.Withdraw(root)
		}
	}
}

// find looks for peers that have parts of the file under root, and connects
// some, unless it did so a moment ago. What they hold they tell themselves.
func (n *Node) find(ctx context.Context, root cid.Cid) {
	h := &n.holders
	now := time.Now()
	h.mu.Lock()
	recent := now.Sub(h.tried[root]) < findAgain
	if !recent {
		h.tried[root] = now
		for c, at := range h.tried {
			if now.Sub(at) >= findAgain {
				delete(h.tried, c)
			}
		}
	}
	h.mu.Unlock()
	if recent {
		return
	}
	var connects sync.WaitGroup
	defer connects.Wait()
	for p := range n.FindProviders(ctx, root, findAtOnce) {
		if p.ID == n.host.ID() {
			continue
		}
		connects.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, connectToThem)
			defer cancel()
			if err := n.host.Connect(ctx, p); err != nil && ctx.Err() == nil {
				n.s.Log.Debug("a holder cannot be reached", "peer", p.ID.String(), "root", root.String(), "err", err)
			}
		})
	}
}
