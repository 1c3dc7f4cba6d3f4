package kubo

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/stall"
)

// Cat returns the bytes of the UnixFS file at path (a CID, or /ipfs/CID) from
// offset on, at most length of them (all that follow when length is negative).
// The bytes come as the daemon sends them, unverified; a read fails when
// nothing arrives for the client's timeout. The caller closes the reader.
func (c *Client) Cat(ctx context.Context, path string, offset, length int64) (io.ReadCloser, error) {
	args := url.Values{"arg": {path}}
	if offset > 0 {
		args.Set("offset", strconv.FormatInt(offset, 10))
	}
	if length >= 0 {
		args.Set("length", strconv.FormatInt(length, 10))
	}
	ctx, watch := stall.Start(ctx, c.timeout)
	watch.Enter()
	defer watch.Leave()
	resp, err := c.call(ctx, "cat", args, nil, "")
	if err != nil {
		watch.Stop()
		return nil, err
	}
	return &stream{Client: c, ctx: ctx, watch: watch, resp: resp}, nil
}

// streamErrorTrailer carries an error that came after the answer had begun.
const streamErrorTrailer = "X-Stream-Error"

// stream is a body whose reads are watched.
type stream struct {
	*Client
	ctx   context.Context
	watch *stall.Watch
	resp  *http.Response
}

func (s *stream) Read(p []byte) (int, error) {
	s.watch.Enter()
	defer s.watch.Leave()
	n, err := s.resp.Body.Read(p)
	switch {
	case err == nil:
	case err == io.EOF:
		// The trailer is here with the body's end, not before.
		if msg := s.resp.Trailer.Get(streamErrorTrailer); msg != "" {
			err = s.failed(s.ctx, "cat", &Error{Message: msg})
		}
	default:
		err = s.failed(s.ctx, "cat", err)
	}
	return n, err
}

func (s *stream) Close() error {
	s.watch.Stop()
	return s.resp.Body.Close()
}
