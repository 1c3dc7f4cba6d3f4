package kubo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"go.uber.org/goleak"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/stall"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// client returns a client of an HTTP server that ends with the test.
func client(t *testing.T, h http.HandlerFunc, opts ...Option) *Client {
	t.Helper()
	over := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h(w, r.WithContext(context.WithValue(r.Context(), testOver{}, over)))
	}))
	c, err := New(s.URL, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		close(over)
		s.Close()
	})
	return c
}

// testOver is the key of a channel that is closed at the end of a test.
type testOver struct{}

// hang waits until the client has gone, or until the test ends: a server does
// not notice that a client has gone while there is a body left to read.
func hang(_ http.ResponseWriter, r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-r.Context().Value(testOver{}).(chan struct{}):
	}
}

// The suite on a daemon that waits for ever for what it does not have, as Kubo
// does, and sends what it was made to hold, unverified. (Package serve has the
// suite on the real one.)
func TestSuite(t *testing.T) { blockstest.Run(t, fixture) }

func TestFiles(t *testing.T) { blockstest.RunFiles(t, fixture) }

func fixture(t *testing.T) blockstest.Fixture {
	held := map[string][]byte{}
	c := client(t, func(w http.ResponseWriter, r *http.Request) {
		data, ok := held[r.URL.Query().Get("arg")]
		if r.Method != http.MethodPost || r.URL.Path != "/api/v0/block/get" || !ok {
			hang(w, r)
			return
		}
		_, _ = w.Write(data) // the client may have gone
	}, WithTimeout(5*time.Second))
	plant := func(_ testing.TB, c cid.Cid, data []byte) { held[c.String()] = data }
	return blockstest.Fixture{
		Blocks: c,
		Put: func(t testing.TB, bs ...blocks.Block) {
			for _, b := range bs {
				plant(t, b.Cid(), b.RawData())
			}
		},
		Plant: plant,
	}
}

func TestNew(t *testing.T) {
	for addr, base := range map[string]string{
		"/unix/run/x.sock":                   "http://unix",
		"/ip4/127.0.0.1/tcp/5001":            "http://127.0.0.1:5001",
		"/ip6/::1/tcp/5001":                  "http://[::1]:5001",
		"/dns4/kubo.example/tcp/5001":        "http://kubo.example:5001",
		"/ip4/127.0.0.1/tcp/5001\n":          "http://127.0.0.1:5001", // as Kubo's file has it
		"http://127.0.0.1:5001/":             "http://127.0.0.1:5001",
		"https://kubo.example/rpc":           "https://kubo.example/rpc",
		"/dns/kubo.example/tcp/443/https":    "https://kubo.example:443",
		"/ip4/127.0.0.1/tcp/443/tls/http":    "https://127.0.0.1:443",
		"http://name:secret@127.0.0.1:5001/": "http://127.0.0.1:5001",
	} {
		if c, err := New(addr); err != nil || c.end.base != base {
			t.Errorf("New(%q): %v, %v; want %s", addr, c, err, base)
		}
	}
	for _, addr := range []string{"", "run/x.sock", "127.0.0.1:5001", "/ip4/127.0.0.1/udp/5001", "/ip4/127.0.0.1", "http://", "http:///x", "ftp://127.0.0.1", "http://h/?x=y"} {
		if _, err := New(addr); err == nil {
			t.Errorf("New(%q): no error", addr)
		}
	}
}

// Nobody is there: the error names the address and the next step.
func TestNoDaemon(t *testing.T) {
	addr := "/unix" + filepath.Join(t.TempDir(), "none.sock")
	c, err := New(addr)
	if err != nil {
		t.Fatal(err)
	}
	b := blockstest.Random(t, 1, 10)
	_, idErr := c.ID(t.Context())
	_, catErr := c.Cat(t.Context(), b.Cid().String(), 0, -1)
	for name, err := range map[string]error{
		"id":  idErr,
		"cat": catErr,
		"get": c.Get(t.Context(), ipfs.Want{CIDs: []cid.Cid{b.Cid()}}, func(cid.Cid, []byte) error { return nil }),
		"import": c.ImportCAR(t.Context(), nil, func(put ipfs.PutFunc) error {
			return put(t.Context(), b)
		}),
	} {
		if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), "ipfs-stargz serve") {
			t.Errorf("%s: %v; want an error with the address and the next step", name, err)
		}
	}
}

// A daemon that accepts and never answers.
func TestHangingDaemon(t *testing.T) {
	c := client(t, hang, WithTimeout(200*time.Millisecond))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, idErr := c.ID(ctx)
	_, catErr := c.Cat(ctx, "bafkqaaa", 0, -1)
	importErr := c.ImportCAR(ctx, nil, func(put ipfs.PutFunc) error {
		for i := range 200 { // more than any buffer on the way holds
			if err := put(ctx, blockstest.Random(t, uint64(i), 256<<10)); err != nil {
				return err
			}
		}
		return nil
	})
	for name, err := range map[string]error{"id": idErr, "cat": catErr, "import": importErr} {
		if !errors.Is(err, stall.ErrStalled) || !strings.Contains(err.Error(), c.Addr()) {
			t.Errorf("%s: %v; want a stall that names the address", name, err)
		}
	}
}

// A body that stops half-way.
func TestCatStalls(t *testing.T) {
	c := client(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.WriteString(w, "half"); err != nil {
			t.Error(err)
		}
		w.(http.Flusher).Flush()
		hang(w, r)
	}, WithTimeout(200*time.Millisecond))
	body, err := c.Cat(t.Context(), "bafkqaaa", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	time.Sleep(500 * time.Millisecond) // a reader that is slow itself is no stall
	got, err := io.ReadAll(body)
	if string(got) != "half" || !errors.Is(err, stall.ErrStalled) {
		t.Errorf("%q, %v; want half of it and a stall", got, err)
	}
}

func TestAnswers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer http.HandlerFunc
		want   string
	}{
		{"Kubo's error", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(w, `{"Message":"this went wrong","Code":0,"Type":"error"}`)
		}, "this went wrong"},
		{"another server", http.NotFound, "not a Kubo RPC"},
		{"plain text", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "403 - Forbidden", http.StatusForbidden)
		}, "403 - Forbidden"},
		{"no JSON", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }, "invalid character"},
		{"endless JSON", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"ID":"%s"}`, strings.Repeat("x", 2*maxReply))
		}, "unexpected EOF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := client(t, tt.answer)
			if _, err := c.ID(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), c.Addr()) {
				t.Errorf("ID: %v; want %q and the address", err, tt.want)
			}
		})
	}
}

func TestCatTrailer(t *testing.T) {
	c := client(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", streamErrorTrailer)
		fmt.Fprint(w, "half")
		w.Header().Set(streamErrorTrailer, "the rest is gone")
	})
	body, err := c.Cat(t.Context(), "bafkqaaa", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); string(got) != "half" || err == nil || !strings.Contains(err.Error(), "the rest is gone") {
		t.Errorf("%q, %v", got, err)
	}
}

// The first error of an import is the one that is returned, whoever had it.
func TestImportErrors(t *testing.T) {
	mine := errors.New("mine")
	root := blockstest.Random(t, 1, 10)
	drain := func(answer string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.Copy(io.Discard, r.Body); err == nil {
				fmt.Fprint(w, answer)
			}
		}
	}
	one := func(put ipfs.PutFunc) error { return put(t.Context(), root) }
	many := func(put ipfs.PutFunc) error {
		for i := range 2000 {
			if err := put(t.Context(), blockstest.Random(t, uint64(i), 100<<10)); err != nil {
				return err
			}
		}
		return nil
	}
	acknowledged := fmt.Sprintf(`{"Root":{"Cid":{"/":"%s"},"PinErrorMsg":""}}`+"\n", root.Cid())
	for _, tt := range []struct {
		name    string
		answer  http.HandlerFunc
		produce func(ipfs.PutFunc) error
		want    string // "" for success
	}{
		{"good", drain(acknowledged), one, ""},
		{"producer", drain(acknowledged), func(ipfs.PutFunc) error { return mine }, "mine"},
		{"not acknowledged", drain(""), one, "was not acknowledged"},
		{"not pinned", drain(fmt.Sprintf(`{"Root":{"Cid":{"/":"%s"},"PinErrorMsg":"no room"}}`, root.Cid())), one, "no room"},
		{"refused at once", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "no room", http.StatusInternalServerError)
		}, many, "no room"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := client(t, tt.answer).ImportCAR(t.Context(), []cid.Cid{root.Cid()}, tt.produce)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := client(t, drain("")).ImportCAR(ctx, nil, func(put ipfs.PutFunc) error {
		cancel()
		return put(t.Context(), root)
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A producer that takes longer than the timeout for a block is no stall.
func TestImportSlowProducer(t *testing.T) {
	c := client(t, func(_ http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			t.Error(err)
		}
	}, WithTimeout(200*time.Millisecond))
	err := c.ImportCAR(t.Context(), nil, func(put ipfs.PutFunc) error {
		for i := range 2 {
			time.Sleep(500 * time.Millisecond)
			if err := put(t.Context(), blockstest.Random(t, uint64(i), 10)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// Connections are kept open and used again.
func TestConnectionsAreKept(t *testing.T) {
	b := blockstest.Random(t, 1, 1000)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if _, err := w.Write(b.RawData()); err != nil {
			t.Error(err)
		}
	}))
	opened := make(chan net.Conn, 100)
	s.Config.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened <- c
		}
	}
	s.Start()
	defer s.Close()
	c, err := New(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 50 {
		if err := c.Get(t.Context(), ipfs.Want{CIDs: []cid.Cid{b.Cid()}}, func(cid.Cid, []byte) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if len(opened) != 1 {
		t.Errorf("%d connections for 50 Gets, want 1", len(opened))
	}
}
