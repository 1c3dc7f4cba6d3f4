package kubo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// ErrNotLoopback is returned by a client that was made with [LoopbackOnly]
// when its daemon is on another machine.
var ErrNotLoopback = errors.New("the daemon is not on this machine")

// endpoint is where a daemon is, and the connections to it.
type endpoint struct {
	addr string        // as the user gave it, without name and password; for errors
	base string        // URL of the API, no slash at the end
	user *url.Userinfo // for basic authentication; nil: none
	http *http.Client
}

// Limits on connections. Requests are bounded by their stall watches.
const (
	dialTimeout = 10 * time.Second
	idleTimeout = 90 * time.Second
	maxHeader   = 64 << 10 // bytes
)

// newEndpoint reads a multiaddr or URL. No error holds the name and password
// that a URL may have.
func newEndpoint(addr string, loopbackOnly bool) (*endpoint, error) {
	addr = strings.TrimSpace(addr)
	dialer := &net.Dialer{Timeout: dialTimeout}
	if loopbackOnly {
		dialer.Control = refuseOthers
	}
	transport := &http.Transport{ // no proxy: it would see what is asked for
		DialContext:            dialer.DialContext,
		MaxIdleConnsPerHost:    demandGets + bulkGets,
		IdleConnTimeout:        idleTimeout,
		TLSHandshakeTimeout:    dialTimeout,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true,
	}
	e := &endpoint{addr: addr, http: &http.Client{
		Transport: transport,
		// Kubo's RPC redirects nowhere, and nobody else is to be asked.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if strings.HasPrefix(addr, "http://") || strings.HasPrefix(addr, "https://") {
		u, err := url.Parse(addr)
		if err != nil || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" {
			return nil, errors.New("kubo: address: this is no URL of a host (want http://127.0.0.1:5001, or with name and password http://NAME:PASSWORD@HOST:PORT)")
		}
		e.user, u.User = u.User, nil
		e.addr = u.String()
		e.base = strings.TrimSuffix(e.addr, "/")
		return e, nil
	}
	if strings.Contains(addr, "://") { // it may hold a password
		return nil, errors.New("kubo: address: want a multiaddr, or a URL that begins with http:// or https://")
	}
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
		e.base = "http://unix"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "unix", host)
		}
	case "tcp", "tcp4", "tcp6":
		e.base = scheme(m) + "://" + host
	default:
		return nil, fmt.Errorf("kubo: address %q: the RPC runs over a unix socket or TCP, not %s", addr, network)
	}
	return e, nil
}

// scheme tells whether a multiaddr ends in /https or /tls/http.
func scheme(m ma.Multiaddr) string {
	for _, p := range m.Protocols() {
		if p.Code == ma.P_HTTPS || p.Code == ma.P_TLS {
			return "https"
		}
	}
	return "http"
}

// refuseOthers lets a dialer connect to this machine only, whatever its name
// resolved to.
func refuseOthers(_, address string, _ syscall.RawConn) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("%w but at %s: in private mode nobody else is asked", ErrNotLoopback, host)
	}
	return nil
}

// post sends a request to a command. A request without a body may be sent
// twice: the daemon may close a connection that is kept alive just then.
func (e *endpoint) post(ctx context.Context, cmd string, args url.Values, body io.Reader, contentType string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.base+"/api/v0/"+cmd+"?"+args.Encode(), body)
	if err != nil {
		return nil, err
	}
	if e.user != nil {
		password, _ := e.user.Password()
		req.SetBasicAuth(e.user.Username(), password)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if body == nil {
		req.Header["Idempotency-Key"] = []string{} // for the transport alone; it is not sent
	}
	return e.http.Do(req)
}

// maxAPIFile is how long Kubo's file with its address may be, in bytes.
const maxAPIFile = 4 << 10

// repoDir is the directory of the user's Kubo, as Kubo itself finds it.
func repoDir() (string, error) {
	if dir := os.Getenv("IPFS_PATH"); dir != "" {
		return dir, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("kubo: neither IPFS_PATH nor a home directory says where Kubo's directory is (give the daemon's address): %w", err)
	}
	return filepath.Join(home, ".ipfs"), nil
}

// readAPIFile returns the address that a running Kubo wrote into its file.
func readAPIFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("kubo: %w; is the Kubo daemon running?", err)
		}
		return "", fmt.Errorf("kubo: address: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAPIFile+1))
	if err != nil {
		return "", fmt.Errorf("kubo: address: %w", err)
	}
	if len(b) > maxAPIFile {
		return "", fmt.Errorf("kubo: address: %s has more than %d bytes and is no file with an address", path, maxAPIFile)
	}
	return string(b), nil
}
