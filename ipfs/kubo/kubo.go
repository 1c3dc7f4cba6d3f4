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
	"strings"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/stall"
)

// Defaults of a Client.
const (
	defaultTimeout = 30 * time.Second
	parallelGets   = 16      // requests of one Get under way at once
	maxReply       = 1 << 20 // bytes of an answer that is not content
)

// Client speaks to one daemon. It is safe for concurrent use. Use [New].
type Client struct {
	addr    string // as the user gave it, for errors
	base    string // URL of the API, no slash at the end
	timeout time.Duration
	http    *http.Client
}

// Option changes a Client.
type Option func(*Client)

// WithTimeout sets how long a request may go on without progress (a block, a
// read of a body, an answer) before it ends with an error. The default is 30 s.
func WithTimeout(d time.Duration) Option { return func(c *Client) { c.timeout = d } }

// New returns a client for the daemon at addr: a multiaddr (/unix/PATH,
// /ip4/127.0.0.1/tcp/5001, /dns/HOST/tcp/5001, as in Kubo's `api` file) or an
// http(s) URL. It does not connect yet.
func New(addr string, opts ...Option) (*Client, error) {
	addr = strings.TrimSpace(addr)
	transport := &http.Transport{
		MaxIdleConnsPerHost: parallelGets,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true,
	}
	c := &Client{addr: addr, timeout: defaultTimeout, http: &http.Client{Transport: transport}}
	if strings.HasPrefix(addr, "http://") || strings.HasPrefix(addr, "https://") {
		u, err := url.Parse(addr)
		if err != nil {
			return nil, fmt.Errorf("kubo: address: %w", err)
		}
		c.base = strings.TrimSuffix(u.String(), "/")
	} else {
		m, err := ma.NewMultiaddr(addr)
		if err != nil {
			return nil, fmt.Errorf("kubo: address %q: want a multiaddr like /unix/run/x.sock or /ip4/127.0.0.1/tcp/5001, or an http URL: %w", addr, err)
		}
		network, host, err := manet.DialArgs(m)
		if err != nil {
			return nil, fmt.Errorf("kubo: address %q: %w", addr, err)
		}
		switch network {
		case "unix":
			c.base = "http://unix"
			dialer := &net.Dialer{}
			transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", host)
			}
		case "tcp", "tcp4", "tcp6":
			c.base = "http://" + host
		default:
			return nil, fmt.Errorf("kubo: address %q: the RPC runs over a unix socket or TCP, not %s", addr, network)
		}
	}
	for _, opt := range opts {
		opt(c)
	}
	return c, nil
}

// Addr returns the daemon's address as New got it.
func (c *Client) Addr() string { return c.addr }

// Close closes the connections that are idle.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
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

// call POSTs to a command and returns the open response of a success.
func (c *Client) call(ctx context.Context, cmd string, args url.Values, body io.Reader, contentType string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/api/v0/"+cmd+"?"+args.Encode(), body)
	if err != nil {
		return nil, c.failed(ctx, cmd, err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.failed(ctx, cmd, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, c.failed(ctx, cmd, replyError(resp))
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
		return fmt.Errorf("kubo: %s at %s: %w for %v; try again, or look into the daemon's log", cmd, c.addr, cause, c.timeout)
	}
	var unreachable *net.OpError
	if errors.As(err, &unreachable) && unreachable.Op == "dial" {
		return fmt.Errorf("kubo: %s: cannot reach the daemon at %s: %w; is `ipfs-stargz serve` running?", cmd, c.addr, unreachable.Err)
	}
	return fmt.Errorf("kubo: %s at %s: %w", cmd, c.addr, err)
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
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxReply)).Decode(v); err != nil {
		return c.failed(ctx, cmd, err)
	}
	return nil
}
