// Package kubo is a client of Kubo's RPC: of our own daemon, which serves a
// subset of it on a unix socket, or of a Kubo daemon that runs already. It is
// one of the implementations of [ipfs.Blocks], and how the command line gives
// blocks to the daemon ([Client.ImportCAR]).
//
// Nothing waits for ever: a request that makes no progress for the client's
// timeout ends with an error that names the address and the next step. Blocks
// are verified here; the daemon is not trusted.
//
// The RPC is described at https://docs.ipfs.tech/reference/kubo/rpc/.
package kubo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/fetch"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/stall"
)

// Defaults and limits of a Client.
const (
	defaultTimeout = 30 * time.Second
	parallelGets   = 32      // requests of one Get under way at once
	demandGets     = 128     // requests of all Gets that somebody waits for
	bulkGets       = 32      // requests of all the others; none of the first waits for them
	maxReply       = 1 << 20 // bytes of an answer that is not content
)

// Client speaks to one daemon. It is safe for concurrent use. Use [New] or
// [NewLocal].
type Client struct {
	apiFile  string // says where the daemon is; empty: it stays where it is
	external bool
	loopback bool
	timeout  time.Duration
	demand   *semaphore.Weighted
	bulk     *semaphore.Weighted
	searched *searches

	mu  sync.Mutex
	end *endpoint // nil: the file was not read yet
}

// Option changes a Client.
type Option func(*Client)

// WithTimeout sets how long a request may go on without progress (a block, a
// read of a body, an answer) before it ends with an error. The default is 30 s.
func WithTimeout(d time.Duration) Option { return func(c *Client) { c.timeout = d } }

// External says that the daemon is a Kubo that somebody else runs, not
// `ipfs-stargz serve`: errors hint at it, and a Get that waits has it search
// for those who provide [ipfs.Want].Root, and connect to them.
func External() Option { return func(c *Client) { c.external = true } }

// LoopbackOnly refuses to connect to a daemon on another machine
// ([ErrNotLoopback]).
func LoopbackOnly() Option { return func(c *Client) { c.loopback = true } }

// New returns a client for the daemon at addr: a multiaddr (/unix/PATH,
// /ip4/127.0.0.1/tcp/5001, /dns/HOST/tcp/5001, as in Kubo's `api` file) or an
// http(s) URL, in which name and password for basic authentication may stand.
// It does not connect yet.
func New(addr string, opts ...Option) (*Client, error) {
	c := newClient(opts)
	var err error
	c.end, err = newEndpoint(addr, c.loopback)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// NewLocal returns a client for the Kubo daemon of this user: at the address
// in $IPFS_PATH/api, or in ~/.ipfs/api. The file is read when it is first
// needed, and again when the daemon cannot be reached where it was: it may have
// started again at another port.
func NewLocal(opts ...Option) (*Client, error) {
	dir, err := repoDir()
	if err != nil {
		return nil, err
	}
	c := newClient(append([]Option{External()}, opts...))
	c.apiFile = filepath.Join(dir, "api")
	return c, nil
}

func newClient(opts []Option) *Client {
	c := &Client{
		timeout:  defaultTimeout,
		demand:   semaphore.NewWeighted(demandGets),
		bulk:     semaphore.NewWeighted(bulkGets),
		searched: newSearches(),
	}
	for _, opt := range opts {
		opt(c)
	}
	return c
}

// Addr returns the daemon's address as New got it, but for name and password;
// of a client by [NewLocal] it is the file until that was read.
func (c *Client) Addr() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end == nil {
		return c.apiFile
	}
	return c.end.addr
}

// Close closes the connections that are idle.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end != nil {
		c.end.http.CloseIdleConnections()
	}
	return nil
}

// endpoint returns where the daemon is. One that could not be reached at the
// endpoint gone is looked for in its file again.
func (c *Client) endpoint(gone *endpoint) (*endpoint, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end != nil && (c.end != gone || c.apiFile == "") {
		return c.end, nil
	}
	addr, err := readAPIFile(c.apiFile)
	if err != nil {
		return nil, err
	}
	e, err := newEndpoint(addr, c.loopback)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.apiFile, err)
	}
	if c.end != nil {
		if c.end.base == e.base && c.end.addr == e.addr {
			return c.end, nil
		}
		c.end.http.CloseIdleConnections()
	}
	c.end = e
	return e, nil
}

// Error is an error that the daemon answered with.
type Error struct {
	Message string
	Code    int
	Type    string
	Status  int `json:"-"` // of HTTP
}

func (e *Error) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("the daemon answered %d %s", e.Status, http.StatusText(e.Status))
	}
	return e.Message
}

// call POSTs to a command and returns the open response of a success. The
// caller reads it to its end, or the connection is not used again.
func (c *Client) call(ctx context.Context, cmd string, args url.Values, body io.Reader, contentType string) (*http.Response, error) {
	e, err := c.endpoint(nil)
	if err != nil {
		return nil, fetch.Down(fmt.Errorf("kubo: %s: %w", cmd, err))
	}
	resp, err := e.post(ctx, cmd, args, body, contentType)
	if isDial(err) && body == nil {
		if moved, merr := c.endpoint(e); merr == nil && moved != e {
			resp, err = moved.post(ctx, cmd, args, nil, contentType)
		}
	}
	if err != nil {
		return nil, c.failed(ctx, cmd, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	defer fetch.Drain(resp)
	err = c.failed(ctx, cmd, replyError(resp))
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed:
		err = fetch.Down(err) // it answers so whatever it is asked for
	}
	return nil, err
}

func isDial(err error) bool {
	var unreachable *net.OpError
	return errors.As(err, &unreachable) && unreachable.Op == "dial"
}

// replyError reads the error of an answer: JSON, or a line of plain text.
func replyError(resp *http.Response) error {
	e := &Error{Status: resp.StatusCode}
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return e
	}
	if mt, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); mt == "application/json" {
		if json.Unmarshal(text, e) == nil && e.Message != "" {
			return e
		}
	}
	e.Message = strings.TrimSpace(string(text))
	if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusMethodNotAllowed {
		e.Message = fmt.Sprintf("%s (%s): this is not a Kubo RPC, or it lacks the command", resp.Status, e.Message)
	}
	return e
}

// failed names the address, the command and the next step in err. When ctx
// has ended, its cause is the error.
func (c *Client) failed(ctx context.Context, cmd string, err error) error {
	if ctx.Err() != nil {
		cause := context.Cause(ctx)
		if !errors.Is(cause, stall.ErrStalled) {
			return cause
		}
		return fmt.Errorf("kubo: %s at %s: %w for %v; try again, or look into the daemon's log", cmd, c.Addr(), cause, c.timeout)
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // it names the whole URL
	}
	if isDial(err) {
		var unreachable *net.OpError
		errors.As(err, &unreachable)
		is := "is `ipfs-stargz serve` running?"
		if c.external {
			is = "is the Kubo daemon running?"
		}
		return fetch.Down(fmt.Errorf("kubo: %s: cannot reach the daemon at %s: %w; %s", cmd, c.Addr(), unreachable.Err, is))
	}
	return fmt.Errorf("kubo: %s at %s: %w", cmd, c.Addr(), err)
}

// reply calls a command whose answer is one small JSON value.
func (c *Client) reply(ctx context.Context, cmd string, v any) error {
	ctx, watch := stall.Start(ctx, c.timeout)
	defer watch.Stop()
	watch.Enter()
	resp, err := c.call(ctx, cmd, nil, nil, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	defer fetch.Drain(resp)
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxReply)).Decode(v); err != nil {
		return c.failed(ctx, cmd, err)
	}
	return nil
}
