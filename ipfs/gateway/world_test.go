package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	blocks "github.com/ipfs/go-block-format"
)

const timeout = 20 * time.Second

// answerer is a gateway without a network: it gives an answer, or an error.
type answerer func(r *http.Request) (*http.Response, error)

// world is a network of gateways by the first label of their host names, and
// counts what each was asked.
type world struct {
	mu       sync.Mutex
	answers  map[string]answerer
	requests map[string]int
}

func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	name, _, _ := strings.Cut(r.URL.Host, ".")
	w.mu.Lock()
	w.requests[name]++
	answer := w.answers[name]
	w.mu.Unlock()
	return answer(r)
}

func (w *world) set(name string, a answerer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers[name] = a
}

func (w *world) asked(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.requests[name]
}

// inWorld runs a test on a client of gateways in a bubble of its own time.
func inWorld(t *testing.T, answers map[string]answerer, test func(t *testing.T, w *world, c *Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{answers: answers, requests: map[string]int{}}
		var urls []string
		for _, name := range slices.Sorted(maps.Keys(answers)) {
			urls = append(urls, "https://"+name+".example")
		}
		c := newClient(t, Config{URLs: urls, Timeout: timeout})
		for _, s := range c.servers {
			s.http.Transport = w
		}
		test(t, w, c)
	})
}

func status(code int, header ...string) answerer {
	return func(r *http.Request) (*http.Response, error) { return response(r, code, nil, header...), nil }
}

func response(r *http.Request, code int, body io.Reader, header ...string) *http.Response {
	if body == nil {
		body = http.NoBody
	}
	resp := &http.Response{
		StatusCode: code, ProtoMajor: 2, Header: http.Header{}, Body: io.NopCloser(body), ContentLength: -1, Request: r,
	}
	for i := 0; i < len(header); i += 2 {
		resp.Header.Set(header[i], header[i+1])
	}
	return resp
}

// gives answers with what it holds after a time, or 404.
func gives(after time.Duration, bs ...blocks.Block) answerer {
	return func(r *http.Request) (*http.Response, error) {
		select {
		case <-time.After(after):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
		for _, b := range bs {
			if strings.HasSuffix(r.URL.Path, "/"+b.Cid().String()) {
				return response(r, http.StatusOK, bytes.NewReader(b.RawData()), "Content-Type", rawBlock), nil
			}
		}
		return response(r, http.StatusNotFound, nil), nil
	}
}

func hangs(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func fails(*http.Request) (*http.Response, error) { return nil, errors.New("connection reset") }

// body is a body that a function makes.
type body func(ctx context.Context, p []byte) (int, error)

func sends(b body) answerer {
	return func(r *http.Request) (*http.Response, error) {
		return response(r, http.StatusOK, reader{r.Context(), b}, "Content-Type", rawBlock), nil
	}
}

type reader struct {
	ctx  context.Context
	body body
}

func (r reader) Read(p []byte) (int, error) { return r.body(r.ctx, p) }

// drips sends a byte a second.
func drips(ctx context.Context, p []byte) (int, error) {
	select {
	case <-time.After(time.Second):
		return copy(p[:1], "x"), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}
