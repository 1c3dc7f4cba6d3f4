package kubo

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/sync/semaphore"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/fetch"
)

// Kubo looks for providers of each block that nobody connected has, but nodes
// announce the roots of files. So a Get that waits has the daemon look for the
// root's providers and connect to them: then they are asked for every block.
const (
	searchAfter    = time.Second      // as bitswap waits before it searches
	searchFor      = 20 * time.Second // at most
	searchAgain    = time.Minute      // not sooner for one root
	searchesAtOnce = 4
	maxSearched    = 1024 // roots, in searchAgain
	maxProviders   = 8    // of one root
	maxAddrs       = 16   // of one provider
	providerType   = 4    // the kind of event that names providers (libp2p's routing.Provider)
)

// searches remembers for which roots the daemon searched lately.
type searches struct {
	atOnce *semaphore.Weighted

	mu   sync.Mutex
	last map[cid.Cid]time.Time
}

func newSearches() *searches {
	return &searches{atOnce: semaphore.NewWeighted(searchesAtOnce), last: make(map[cid.Cid]time.Time)}
}

// begin tells whether it is time to search for a root's providers.
func (s *searches) begin(root cid.Cid) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.last) >= maxSearched {
		maps.DeleteFunc(s.last, func(_ cid.Cid, t time.Time) bool { return time.Since(t) >= searchAgain })
	}
	if t, ok := s.last[root]; ok && time.Since(t) < searchAgain || len(s.last) >= maxSearched {
		return false
	}
	if !s.atOnce.TryAcquire(1) {
		return false
	}
	s.last[root] = time.Now()
	return true
}

// end of a search. One that was cut short may be made again at once.
func (s *searches) end(root cid.Cid, whole bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.atOnce.Release(1)
	if !whole {
		delete(s.last, root)
	}
}

// searchLater searches for a root's providers if stop is not called soon. stop
// ends the search and waits for its end.
func (c *Client) searchLater(ctx context.Context, root cid.Cid) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Add(1)
	timer := time.AfterFunc(searchAfter, func() {
		defer running.Done()
		if c.searched.begin(root) {
			c.search(ctx, root)
			c.searched.end(root, ctx.Err() == nil)
		}
	})
	return func() {
		cancel()
		if timer.Stop() {
			running.Done()
		}
		running.Wait()
	}
}

// search has the daemon find providers of a root and connect to them. It
// returns no error: a daemon may have no routing, its own subset of the RPC has
// no such command, and the Get that waits says what it could not have.
func (c *Client) search(ctx context.Context, root cid.Cid) {
	ctx, cancel := context.WithTimeout(ctx, searchFor)
	defer cancel()
	resp, err := c.call(ctx, "routing/findprovs", url.Values{
		"arg": {root.String()}, "num-providers": {strconv.Itoa(maxProviders)}, "timeout": {searchFor.String()},
	}, nil, "")
	if err != nil {
		return
	}
	defer resp.Body.Close()
	var connects sync.WaitGroup
	found := 0
	readProviders(resp.Body, func(addrs []string) bool {
		connects.Go(func() { c.connect(ctx, addrs) })
		found++
		return found < maxProviders
	})
	connects.Wait()
}

// connect has the daemon connect to one peer. It may fail: others are tried too.
func (c *Client) connect(ctx context.Context, addrs []string) {
	resp, err := c.call(ctx, "swarm/connect", url.Values{"arg": addrs}, nil, "")
	if err == nil {
		fetch.Drain(resp)
		resp.Body.Close()
	}
}

// readProviders reads the events of routing/findprovs and calls fn with the
// addresses of each provider, until fn returns false, or something else comes.
func readProviders(r io.Reader, fn func(addrs []string) bool) {
	seen := make(map[string]bool)
	events := json.NewDecoder(io.LimitReader(r, maxReply))
	for {
		var event struct {
			Type      int
			Responses []struct {
				ID    string
				Addrs []string
			}
		}
		if events.Decode(&event) != nil {
			return // at the end, or at what is no event
		}
		if event.Type != providerType {
			continue
		}
		for _, p := range event.Responses {
			if p.ID == "" || seen[p.ID] {
				continue
			}
			seen[p.ID] = true
			if addrs := peerAddrs(p.ID, p.Addrs); len(addrs) > 0 && !fn(addrs) {
				return
			}
		}
	}
}

// peerAddrs returns the multiaddrs of a peer, each with /p2p/ID at its end, and
// that alone, because the daemon may know more. Strangers announced them: one
// that is none would have the daemon refuse the others.
func peerAddrs(id string, addrs []string) []string {
	p2p := "/p2p/" + id
	if _, err := ma.NewMultiaddr(p2p); err != nil {
		return nil
	}
	out := []string{p2p}
	for _, a := range addrs[:min(len(addrs), maxAddrs)] {
		a = strings.TrimSuffix(a, p2p) + p2p
		if _, err := ma.NewMultiaddr(a); err == nil {
			out = append(out, a)
		}
	}
	return out
}
