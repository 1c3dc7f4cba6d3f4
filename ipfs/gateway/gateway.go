// Package gateway gets blocks from trustless HTTP gateways: one of the
// implementations of [ipfs.Blocks], for where no peer that holds a block can be
// reached. It speaks https://specs.ipfs.tech/http-gateways/trustless-gateway/,
// of which it uses raw blocks alone.
//
// Several gateways are one source. Each request goes to the one that is likely
// to answer first, by the time it took lately and what it has to do; when it
// takes longer than it usually does, the next is asked too. One that fails is
// left alone for a while, one that asks to be left alone (Retry-After) for as
// long as it says, and one that sent wrong bytes for as long as the process
// lives. Gateways learn what is asked for, so they are for public content.
package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/fetch"
)

// Config says which gateways are asked, and how hard.
type Config struct {
	// URLs are the gateways: http or https, without /ipfs/ at the end. Name and
	// password for basic authentication may stand in them; no error or log
	// line has these.
	URLs []string
	// Timeout is how long nothing may arrive before a Get ends. An answer of
	// one gateway may take half of it. The default is 30 s.
	Timeout time.Duration
	// Demand and Bulk are how many requests one gateway gets at once: of those
	// that somebody waits for, and of the others. The defaults are 16 and 8.
	Demand, Bulk int
	// Log is told once of each gateway that sent wrong bytes. The default
	// discards it.
	Log *slog.Logger
}

// Defaults and limits.
const (
	defaultTimeout = 30 * time.Second
	defaultDemand  = 16
	defaultBulk    = 8
	maxParallel    = 64 // blocks of one Get asked for at once, and so in memory
)

// Client asks gateways. It is safe for concurrent use. Use [New].
type Client struct {
	timeout   time.Duration
	slots     [2]int // requests at one gateway at once, by class
	log       *slog.Logger
	transport *http.Transport
	servers   []*server

	mu      sync.Mutex    // of all servers' health
	changed chan struct{} // closed when one has room again, and replaced
}

var _ ipfs.Blocks = (*Client)(nil)

// class is the kind of a want; each has its own slots at each gateway.
type class int

const (
	demand class = iota
	bulk
)

// New returns a client of the gateways. It connects to none yet.
func New(cfg Config) (*Client, error) {
	if len(cfg.URLs) == 0 {
		return nil, errors.New("gateway: no gateway is configured")
	}
	g := &Client{
		timeout: cfg.Timeout,
		slots:   [2]int{demand: cfg.Demand, bulk: cfg.Bulk},
		log:     cfg.Log,
		changed: make(chan struct{}),
	}
	if g.timeout <= 0 {
		g.timeout = defaultTimeout
	}
	if g.slots[demand] <= 0 {
		g.slots[demand] = defaultDemand
	}
	if g.slots[bulk] <= 0 {
		g.slots[bulk] = defaultBulk
	}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	g.transport = newTransport(g.slots[demand] + g.slots[bulk])
	for _, u := range cfg.URLs {
		s, err := newServer(u, g.transport)
		if err != nil {
			return nil, err
		}
		g.servers = append(g.servers, s)
	}
	return g, nil
}

// Close closes the connections that are idle.
func (g *Client) Close() error {
	g.transport.CloseIdleConnections()
	return nil
}

// Get implements [ipfs.Blocks]. An [*ipfs.UnavailableError] names each gateway
// with what it answered.
func (g *Client) Get(ctx context.Context, w ipfs.Want, fn func(cid.Cid, []byte) error) error {
	kind := demand
	if w.Bulk {
		kind = bulk
	}
	return fetch.Source{
		Block: func(ctx context.Context, c cid.Cid) ([]byte, error) { return g.block(ctx, c, kind) },
		// A few more than the slots, so that none is idle.
		Parallel: min(maxParallel, 2*len(g.servers)*g.slots[kind]),
		Timeout:  g.timeout,
		Unavailable: func(cids []cid.Cid, after time.Duration, err error) *ipfs.UnavailableError {
			return &ipfs.UnavailableError{CIDs: cids, After: after, Asked: g.states(), Err: err, Hint: hint}
		},
	}.Get(ctx, w, fn)
}

const hint = "see whether the gateways can be reached and serve this content, or configure others"
