package direct

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/gostream"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/buffer"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/stall"
)

// httpProtocol carries HTTP/1.1 on streams
// (https://github.com/libp2p/specs/blob/master/http/README.md).
const httpProtocol protocol.ID = "/http/1.1"

// Bounds on one request.
const (
	stallTimeout   = 10 * time.Second // without a byte
	requestTimeout = time.Minute      // for one block, however it comes
	maxHeaderBytes = 16 << 10
	maxRetryAfter  = 10 * time.Second
)

var (
	// errMissing: the peer does not hold the block.
	errMissing = errors.New("the peer does not hold it")
	// errLied: the peer sent something else for it.
	errLied = errors.New("the peer sent something else")
)

// busyError: the peer wants to be asked later.
type busyError struct{ after time.Duration }

func (e busyError) Error() string { return fmt.Sprintf("the peer is busy for %v", e.after) }

// client asks peers for blocks, over streams that it uses again.
type client struct {
	http           http.Client
	stall, timeout time.Duration
}

func newClient(h host.Host) *client {
	return &client{stall: stallTimeout, timeout: requestTimeout, http: http.Client{
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				text, _, err := net.SplitHostPort(addr)
				if err != nil {
					return nil, err
				}
				id, err := peer.Decode(text)
				if err != nil {
					return nil, err
				}
				s, err := gostream.Dial(network.WithNoDial(ctx, "it is not connected"), h, id, httpProtocol)
				if err != nil {
					return nil, err
				}
				return resetting{s}, nil
			},
			DisableCompression:     true,
			MaxIdleConnsPerHost:    maxFlights,
			IdleConnTimeout:        20 * time.Second,
			MaxResponseHeaderBytes: maxHeaderBytes,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// resetting is a stream that is reset when it is closed. To close it would only
// say that there is nothing more to ask, and the peer would go on sending an
// answer that nobody waits for.
type resetting struct{ net.Conn }

func (c resetting) Close() error {
	if s, ok := c.Conn.(interface{ Reset() error }); ok {
		return s.Reset()
	}
	return c.Conn.Close()
}

// get fetches and verifies a block. data are lent by package buffer, and with
// whatever error to be given back there; delay is after how long the answer began.
// The error wraps errMissing, errLied or a busyError, or tells of a peer that
// is slow, cut off, or no gateway.
func (c *client) get(ctx context.Context, from peer.ID, want cid.Cid) (data []byte, delay time.Duration, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, stall.ErrStalled)
	defer cancel()
	ctx, watch := stall.Start(ctx, c.stall)
	defer watch.Stop()
	watch.Enter()
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+from.String()+"/ipfs/"+want.String()+"?format=raw", nil)
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Accept", rawBlock)
	began := time.Now()
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	delay = time.Since(began)
	watch.Touch()
	switch resp.StatusCode {
	case http.StatusOK:
		data, err = readBlock(resp, watch)
		if err == nil {
			err = ipfs.Verify(want, data)
		}
		if errors.Is(err, ipfs.ErrBadBlock) || errors.Is(err, ipfs.ErrTooLarge) {
			err = fmt.Errorf("%w: %w", errLied, err)
		}
		return data, delay, err
	case http.StatusNotFound, http.StatusGone, http.StatusPreconditionFailed:
		// So that the stream can be used again; a long text is not worth it.
		_, _ = io.CopyN(io.Discard, resp.Body, maxHeaderBytes)
		return nil, delay, errMissing
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		_, _ = io.CopyN(io.Discard, resp.Body, maxHeaderBytes)
		return nil, delay, busyError{retryAfter(resp.Header)}
	default:
		return nil, delay, fmt.Errorf("the peer answered %.100q", resp.Status)
	}
}

// readBlock reads a body of at most one block.
func readBlock(resp *http.Response, watch *stall.Watch) ([]byte, error) {
	if resp.ContentLength > ipfs.MaxBlockSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ipfs.ErrTooLarge, resp.ContentLength, ipfs.MaxBlockSize)
	}
	size := resp.ContentLength
	if size < 0 { // it does not say
		data, err := io.ReadAll(io.LimitReader(touching{resp.Body, watch}, ipfs.MaxBlockSize+1))
		return data, err // Verify tells one that is too large
	}
	data := buffer.Get(int(size))
	if _, err := io.ReadFull(touching{resp.Body, watch}, data); err != nil {
		return data, err
	}
	var one [1]byte
	// The end of the body frees the stream for the next request.
	if n, err := resp.Body.Read(one[:]); n > 0 || err != io.EOF {
		return data, fmt.Errorf("more than the %d bytes announced (%w)", size, err)
	}
	return data, nil
}

// touching tells the watch of every byte.
type touching struct {
	io.Reader
	watch *stall.Watch
}

func (t touching) Read(p []byte) (int, error) {
	n, err := t.Reader.Read(p)
	if n > 0 {
		t.watch.Touch()
	}
	return n, err
}

// retryAfter reads how many seconds a busy peer wants to be left alone.
func retryAfter(h http.Header) time.Duration {
	s, err := strconv.ParseInt(h.Get("Retry-After"), 10, 32)
	if err != nil || s < 0 {
		return firstRest
	}
	return min(max(time.Duration(s)*time.Second, firstRest), maxRetryAfter)
}

func (c *client) close() { c.http.CloseIdleConnections() }
