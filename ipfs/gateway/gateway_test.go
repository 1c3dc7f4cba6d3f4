package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/exchange/offline"
	boxo "github.com/ipfs/boxo/gateway"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newClient returns a client that ends with the test.
func newClient(t *testing.T, cfg Config) *Client {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// held is what a server holds, by CID.
type held struct {
	mu   sync.Mutex
	data map[string][]byte
}

func (h *held) put(c cid.Cid, data []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.data == nil {
		h.data = map[string][]byte{}
	}
	h.data[c.String()] = data
}

func (h *held) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	data, ok := h.data[strings.TrimPrefix(r.URL.Path, "/ipfs/")]
	h.mu.Unlock()
	if !ok || r.URL.Query().Get("format") != "raw" || r.Header.Get("Accept") != rawBlock {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", rawBlock)
	_, _ = w.Write(data) // the client may have gone
}

// The suite on gateways of which one is honest: each other lies once, and is
// not asked again.
func TestSuite(t *testing.T) {
	blockstest.Run(t, func(t *testing.T) blockstest.Fixture {
		var servers []*held
		var urls []string
		for range 4 {
			h := &held{}
			s := httptest.NewServer(h)
			t.Cleanup(s.Close)
			servers, urls = append(servers, h), append(urls, s.URL)
		}
		liars := 0
		return blockstest.Fixture{
			Blocks: newClient(t, Config{URLs: urls, Timeout: 5 * time.Second}),
			Put: func(_ testing.TB, bs ...blocks.Block) {
				for _, b := range bs {
					servers[0].put(b.Cid(), b.RawData())
				}
			},
			Plant: func(_ testing.TB, c cid.Cid, data []byte) {
				liars++
				servers[liars].put(c, data)
			},
		}
	})
}

// boxoGateway is a trustless gateway by the IPFS project's own library.
func boxoGateway(t *testing.T) (store blockstore.Blockstore, handler http.Handler) {
	t.Helper()
	store = blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))
	service := blockservice.New(store, offline.Exchange(store))
	t.Cleanup(func() {
		if err := service.Close(); err != nil {
			t.Error(err)
		}
	})
	backend, err := boxo.NewBlocksBackend(service)
	if err != nil {
		t.Fatal(err)
	}
	cfg := boxo.Config{
		MetricsRegistry: prometheus.NewRegistry(),
		PublicGateways:  map[string]*boxo.PublicGateway{"localhost": {Paths: []string{"/ipfs"}, UseSubdomains: true}},
	}
	mux := http.NewServeMux()
	mux.Handle("/ipfs/", boxo.NewHandler(cfg, backend))
	return store, boxo.NewHostnameHandler(cfg, backend, mux)
}

// boxoFixture asks it by the address of its URL, or by another name.
func boxoFixture(t *testing.T, host string) blockstest.Fixture {
	store, handler := boxoGateway(t)
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return blockstest.Fixture{
		Blocks: newClient(t, Config{URLs: []string{strings.Replace(s.URL, "127.0.0.1", host, 1) + "/"}, Timeout: 10 * time.Second}),
		Put: func(t testing.TB, bs ...blocks.Block) {
			if err := store.PutMany(t.Context(), bs); err != nil {
				t.Fatal(err)
			}
		},
	}
}

func TestBoxoSuite(t *testing.T) {
	blockstest.Run(t, func(t *testing.T) blockstest.Fixture { return boxoFixture(t, "127.0.0.1") })
}

func TestBoxoFiles(t *testing.T) {
	blockstest.RunFiles(t, func(t *testing.T) blockstest.Fixture { return boxoFixture(t, "127.0.0.1") })
}

// A gateway by the name localhost redirects each CID to a subdomain of its own.
func TestSubdomains(t *testing.T) {
	f := boxoFixture(t, "localhost")
	b := blockstest.Random(t, 1, 1000)
	f.Put(t, b)
	n := 0
	if err := f.Blocks.Get(t.Context(), ipfs.Want{CIDs: []cid.Cid{b.Cid()}}, func(cid.Cid, []byte) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("%d blocks, %v", n, err)
	}
}

// Connections are used again, also after answers that are none; with HTTP/2 one
// carries all. (A request that begins before the connection of one that ended
// is back among the idle ones opens another, so there may be a few more.)
func TestConnectionsAreReused(t *testing.T) {
	for _, tt := range []struct {
		name  string
		h2    bool
		atMax int32
	}{{"HTTP/1.1", false, 8 * (defaultDemand + defaultBulk)}, {"HTTP/2", true, 1}} {
		t.Run(tt.name, func(t *testing.T) {
			h := &held{}
			var have, gone []cid.Cid
			for i := range 500 {
				b := blockstest.Random(t, uint64(i), 5000)
				h.put(b.Cid(), b.RawData())
				have = append(have, b.Cid())
				gone = append(gone, blockstest.Random(t, uint64(5000+i), 10).Cid())
			}
			var opened, other atomic.Int32
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if (r.ProtoMajor == 2) != tt.h2 {
					other.Add(1)
				}
				h.ServeHTTP(w, r)
			}))
			s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
				if state == http.StateNew {
					opened.Add(1)
				}
			}
			if s.EnableHTTP2 = tt.h2; tt.h2 {
				s.StartTLS()
			} else {
				s.Start()
			}
			defer s.Close()
			c := newClient(t, Config{URLs: []string{s.URL}})
			if tt.h2 {
				c.transport.TLSClientConfig = &tls.Config{RootCAs: s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}
				if err := getAll(t.Context(), c, have[0]); err != nil { // or all that are first dial at once
					t.Fatal(err)
				}
			}
			for range 2 {
				if err := c.Get(t.Context(), ipfs.Want{CIDs: have}, func(cid.Cid, []byte) error { return nil }); err != nil {
					t.Fatal(err)
				}
				if err := c.Get(t.Context(), ipfs.Want{CIDs: gone, Bulk: true}, func(cid.Cid, []byte) error { return nil }); err == nil {
					t.Fatal("what is gone was had")
				}
			}
			if n := opened.Load(); n > tt.atMax || other.Load() > 0 {
				t.Errorf("%d connections, want %d at most; %d requests by another protocol", n, tt.atMax, other.Load())
			}
		})
	}
}

// getAll gets blocks and drops them.
func getAll(ctx context.Context, b ipfs.Blocks, cids ...cid.Cid) error {
	return b.Get(ctx, ipfs.Want{CIDs: cids}, func(cid.Cid, []byte) error { return nil })
}

// Name and password of a URL reach the gateway, and are in no error.
func TestBasicAuth(t *testing.T) {
	b := blockstest.Random(t, 1, 100)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name, password, ok := r.BasicAuth(); !ok || name != "someone" || password != "s3cret" {
			w.WriteHeader(http.StatusUnauthorized)
		} else if strings.Contains(r.URL.Path, b.Cid().String()) {
			_, _ = w.Write(b.RawData())
		} else {
			panic(http.ErrAbortHandler)
		}
	}))
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "http://")
	c := newClient(t, Config{URLs: []string{"http://someone:s3cret@" + host}})
	if err := getAll(t.Context(), c, b.Cid()); err != nil {
		t.Error(err)
	}
	_, badURL := New(Config{URLs: []string{"http://someone:s3cret@" + host + "%zz"}})
	_, badScheme := New(Config{URLs: []string{"ftp://someone:s3cret@" + host}})
	for name, err := range map[string]error{
		"stranger":   getAll(t.Context(), newClient(t, Config{URLs: []string{"http://someone:s3cret.not@" + host}}), b.Cid()),
		"aborted":    getAll(t.Context(), c, blockstest.Random(t, 2, 10).Cid()),
		"bad URL":    badURL,
		"bad scheme": badScheme,
	} {
		if err == nil || strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "someone") {
			t.Errorf("%s: %v; want an error without name and password", name, err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, urls := range [][]string{
		nil, {""}, {"gateway.example"}, {"ftp://gateway.example"}, {"http://"}, {"https://gateway.example?x=y"}, {"https://gateway.example", "#"},
	} {
		if _, err := New(Config{URLs: urls}); err == nil {
			t.Errorf("%q: no error", urls)
		}
	}
}

// Nobody is there: a clear error that names the gateway, soon.
func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	l.Close()
	c := newClient(t, Config{URLs: []string{url}})
	gone := blockstest.Random(t, 1, 10).Cid()
	for range 3 {
		err = getAll(t.Context(), c, gone)
		var u *ipfs.UnavailableError
		if !errors.As(err, &u) || len(u.Asked) != 1 || !strings.Contains(u.Asked[0], url) || !strings.Contains(u.Asked[0], "refused") {
			t.Errorf("%v", err)
		}
	}
	if want := fmt.Sprintf("%s (", url); !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), gone.String()) {
		t.Errorf("%v does not say %q and the CID", err, want)
	}
}
