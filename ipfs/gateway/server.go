package gateway

import (
	"context"
	"errors"
	"fmt"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/fetch"
)

// Limits on connections and answers.
const (
	dialTimeout  = 10 * time.Second
	idleTimeout  = 90 * time.Second
	maxHeader    = 64 << 10 // bytes
	maxRedirects = 3
	maxWhy       = 200 // bytes of a reason in an error
)

// rawBlock is the content type of a block.
const rawBlock = "application/vnd.ipld.raw"

// server is one gateway.
type server struct {
	url  string        // no name and password, no slash at the end
	user *url.Userinfo // for basic authentication; nil: none
	http *http.Client
	health
}

// newServer reads a gateway's URL. No error holds its name and password.
func newServer(addr string, transport http.RoundTripper) (*server, error) {
	u, err := url.Parse(strings.TrimSpace(addr))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("gateway: a URL is none of a gateway (want https://HOST or http://HOST:PORT, without what follows it)")
	}
	s := &server{user: u.User}
	u.User = nil
	s.url = strings.TrimSuffix(u.String(), "/")
	s.http = &http.Client{
		Transport:     transport,
		CheckRedirect: func(req *http.Request, via []*http.Request) error { return checkRedirect(u, req, len(via)) },
	}
	return s, nil
}

// newTransport returns what all gateways' connections go through. A proxy is
// used if the environment names one.
func newTransport(perHost int) *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, localhost(addr))
		},
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    perHost,
		IdleConnTimeout:        idleTimeout,
		TLSHandshakeTimeout:    dialTimeout,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true, // blocks are compressed already, and bounded as they are
	}
}

// localhost leads all names under localhost to this machine, as RFC 6761 wants:
// a gateway there redirects to CID.ipfs.localhost, which few resolvers know.
func localhost(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err == nil && strings.HasSuffix(strings.TrimSuffix(host, "."), ".localhost") {
		return net.JoinHostPort("localhost", port)
	}
	return addr
}

// checkRedirect allows what gateways redirect for: to a subdomain that is the
// CID's, and from http to https.
func checkRedirect(gateway *url.URL, req *http.Request, hops int) error {
	to := req.URL
	host, own := strings.ToLower(to.Hostname()), strings.ToLower(gateway.Hostname())
	switch {
	case hops > maxRedirects:
		return &refusal{why: fmt.Sprintf("more than %d redirects", maxRedirects)}
	case to.Scheme != gateway.Scheme && to.Scheme != "https":
		return &refusal{why: fmt.Sprintf("it redirects to the scheme %q", to.Scheme)}
	case host != own && !strings.HasSuffix(host, "."+own),
		to.Scheme == gateway.Scheme && to.Port() != gateway.Port():
		return &refusal{why: fmt.Sprintf("it redirects to %q: name that as the gateway if it is one", to.Host)}
	}
	return nil
}

// refusal is why a gateway did not give a block.
type refusal struct {
	why   string
	again bool          // it may be asked for the block again
	fault bool          // it does not work as it should
	lied  bool          // it sent wrong bytes
	wait  time.Duration // it asks to be left alone for so long
}

func (r *refusal) Error() string { return r.why[:min(len(r.why), maxWhy)] }

// get asks for one block and reads it; nothing is verified yet. The error is a
// *refusal.
func (s *server) get(ctx context.Context, c cid.Cid) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/ipfs/"+c.String()+"?format=raw", nil)
	if err != nil {
		return nil, failure(err)
	}
	req.Header.Set("Accept", rawBlock)
	req.Header.Set("User-Agent", "ipfs-stargz")
	if s.user != nil {
		password, _ := s.user.Password()
		req.SetBasicAuth(s.user.Username(), password)
	}
	resp, err := s.http.Do(req)
	if err != nil {
		return nil, failure(err)
	}
	defer resp.Body.Close()
	if no := refusalOf(resp, time.Now()); no != nil {
		fetch.Drain(resp)
		return nil, no
	}
	data, err := fetch.ReadBlock(resp.Body, resp.Header.Get("Content-Length"))
	switch {
	case err != nil:
		return nil, failure(err)
	case len(data) > ipfs.MaxBlockSize:
		return nil, tooLarge()
	case cutUnseen(resp) && ipfs.Verify(c, data) != nil:
		return nil, &refusal{why: "wrong bytes on a connection that may have been cut", again: true, fault: true}
	}
	return data, nil
}

func tooLarge() *refusal {
	return &refusal{why: fmt.Sprintf("it sent more than the %d bytes that a block may have", ipfs.MaxBlockSize)}
}

// cutUnseen tells whether the end of the connection was that of the body, so
// that nothing shows whether all of it came.
func cutUnseen(resp *http.Response) bool {
	return resp.ProtoMajor == 1 && resp.ContentLength < 0 && len(resp.TransferEncoding) == 0
}

// failure is the refusal for a request without an answer.
func failure(err error) *refusal {
	var no *refusal
	if errors.As(err, &no) {
		return no
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // it names the whole URL
	}
	return &refusal{why: err.Error(), again: true, fault: true}
}

// refusalOf tells from an answer's header why it is no block; nil if it is one.
func refusalOf(resp *http.Response, now time.Time) *refusal {
	if resp.StatusCode != http.StatusOK {
		no := &refusal{why: strings.TrimSpace(strconv.Itoa(resp.StatusCode) + " " + http.StatusText(resp.StatusCode))}
		switch resp.StatusCode {
		case http.StatusGatewayTimeout: // it found nobody who has the block
		case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusTooEarly:
			no.again, no.fault = true, true
		default:
			no.again = resp.StatusCode >= 500 && resp.StatusCode != http.StatusNotImplemented
			no.fault = no.again
		}
		if no.again {
			no.wait = retryAfter(resp.Header.Get("Retry-After"), now)
		}
		return no
	}
	if resp.ContentLength > ipfs.MaxBlockSize {
		return tooLarge()
	}
	if t := resp.Header.Get("Content-Type"); t != "" {
		mt, _, err := mime.ParseMediaType(t)
		if err != nil || mt != rawBlock && mt != "application/octet-stream" {
			// A page to log in at, or a gateway that is not trustless.
			return &refusal{why: fmt.Sprintf("it sent %.60q and no block", t), fault: true}
		}
	}
	return nil
}

// retryAfter reads the header of RFC 9110, section 10.2.3: seconds, or a date.
// What cannot be read, or has passed, is 0.
func retryAfter(header string, now time.Time) time.Duration {
	header = strings.TrimSpace(header)
	if header == "" {
		return 0
	}
	if strings.Trim(header, "0123456789") == "" {
		seconds, err := strconv.Atoi(header)
		if err != nil || time.Duration(seconds) > maxToldTime/time.Second {
			return maxToldTime // also where it is too large for a number
		}
		return time.Duration(seconds) * time.Second
	}
	t, err := http.ParseTime(header)
	if err != nil {
		return 0
	}
	return min(max(t.Sub(now), 0), maxToldTime)
}
