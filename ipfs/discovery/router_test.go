package discovery

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/routing/http/server"
	"github.com/ipfs/boxo/routing/http/types"
	"github.com/ipfs/boxo/routing/http/types/iter"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/routing"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"
)

// delegated is a delegated router with boxo's server in front.
type delegated struct {
	server.DelegatedRouter // what is not below is not called
	providers              map[cid.Cid][]peer.AddrInfo

	mu      sync.Mutex
	records map[ipns.Name]*ipns.Record
}

func (d *delegated) FindProviders(_ context.Context, c cid.Cid, _ int) (iter.ResultIter[types.Record], error) {
	var out []iter.Result[types.Record]
	for _, p := range d.providers[c] {
		r := &types.PeerRecord{Schema: types.SchemaPeer, ID: &p.ID}
		for _, a := range p.Addrs {
			r.Addrs = append(r.Addrs, types.Multiaddr{Multiaddr: a})
		}
		out = append(out, iter.Result[types.Record]{Val: r})
	}
	return iter.FromSlice(out), nil
}

func (d *delegated) GetIPNS(_ context.Context, n ipns.Name) (*ipns.Record, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.records[n]; r != nil {
		return r, nil
	}
	return nil, routing.ErrNotFound
}

func (d *delegated) PutIPNS(_ context.Context, n ipns.Name, r *ipns.Record) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.records[n] = r
	return nil
}

func serveHTTP(t testing.TB, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

func TestDelegatedRouter(t *testing.T) {
	holder, stranger := newHost(t, nil), newHost(t, nil)
	root := testCID(t, "layer")
	for name, opts := range map[string][]server.Option{"lines": nil, "JSON": {server.WithStreamingResultsDisabled()}} {
		t.Run(name, func(t *testing.T) {
			d := &delegated{
				providers: map[cid.Cid][]peer.AddrInfo{root: {
					{ID: stranger.ID(), Addrs: stranger.Addrs()}, {ID: holder.ID(), Addrs: holder.Addrs()},
				}},
				records: make(map[ipns.Name]*ipns.Record),
			}
			url := serveHTTP(t, server.Handler(d, append(opts, server.WithPrometheusRegistry(prometheus.NewRegistry()))...))
			r := newRouting(t, RoutingConfig{
				NoDHT: true, Public: true, Routers: []string{url},
				Allowed: func(p peer.ID) bool { return p != stranger.ID() },
			})
			if got := find(t, r, root, 10); !slices.Equal(got, []peer.ID{holder.ID()}) {
				t.Errorf("found %v, want the holder that is allowed", got)
			}
			if got := find(t, r, testCID(t, "another layer"), 10); len(got) > 0 {
				t.Errorf("nobody has it, but found are %v", got)
			}
			key, raw := signed(t)
			if _, err := r.GetValue(t.Context(), key); err == nil {
				t.Error("a record that was not put")
			}
			if err := r.PutValue(t.Context(), key, raw); err != nil {
				t.Error(err)
			}
			if got, err := r.GetValue(t.Context(), key); err != nil || !slices.Equal(got, raw) {
				t.Errorf("GetValue: %d bytes, %v", len(got), err)
			}
		})
	}
}

// The first that takes a record or has it is enough, and one that is broken
// holds nobody up.
func TestOneOfManyRouters(t *testing.T) {
	holder := newHost(t, nil)
	root := testCID(t, "layer")
	good := &delegated{
		providers: map[cid.Cid][]peer.AddrInfo{root: {{ID: holder.ID(), Addrs: holder.Addrs()}}},
		records:   make(map[ipns.Name]*ipns.Record),
	}
	broken := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "out of order", http.StatusInternalServerError)
	})
	r := newRouting(t, RoutingConfig{NoDHT: true, Public: true, Routers: []string{
		serveHTTP(t, broken) + "/", serveHTTP(t, server.Handler(good, server.WithPrometheusRegistry(prometheus.NewRegistry()))) + "/routing/v1",
	}})
	if got := find(t, r, root, 10); !slices.Equal(got, []peer.ID{holder.ID()}) {
		t.Errorf("found %v, want the holder", got)
	}
	key, raw := signed(t)
	if err := r.PutValue(t.Context(), key, raw); err != nil {
		t.Error(err)
	}
	if got, err := r.GetValue(t.Context(), key); err != nil || !slices.Equal(got, raw) {
		t.Errorf("GetValue: %d bytes, %v", len(got), err)
	}
}

// What a hostile router answers costs no more than an error.
func TestHostileRouter(t *testing.T) {
	key, raw := signed(t)
	forged := slices.Clone(raw)
	forged[len(forged)-1] ^= 1
	for name, c := range map[string]struct{ mediaType, body string }{
		"another type":     {"text/html", "<html>"},
		"no type":          {"", ""},
		"not JSON":         {typeJSON, "{"},
		"endless":          {typeJSON, `{"Providers":[` + strings.Repeat(`{"ID":"x"},`, 1<<17)},
		"an endless line":  {typeNDJSON, strings.Repeat("x", 2<<20)},
		"forged record":    {typeIPNS, string(forged)},
		"too long record":  {typeIPNS, strings.Repeat("x", 1<<20)},
		"record of others": {typeIPNS, "\n\x01x"},
	} {
		t.Run(name, func(t *testing.T) {
			x := newRouter(serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", c.mediaType)
				_, _ = io.WriteString(w, c.body) // it may have hung up
			})))
			defer x.close()
			if err := x.findProviders(t.Context(), testCID(t, "layer"), 10, func(p peer.AddrInfo) { t.Errorf("found %v", p) }); err == nil {
				t.Error("findProviders: no error")
			}
			if got, err := x.getValue(t.Context(), key); err == nil {
				t.Errorf("getValue: %q", got)
			}
		})
	}
}

func TestReadProvidersLeavesOutWhatItCannotUse(t *testing.T) {
	const id, other = "12D3KooWQQe2yFFNE4iqMz1HFBhd2CGN4f5XD9MgB4YNBLyjsqt8", "12D3KooWGRUVh9GYUnyGFJBbcx3Bvw5mYqzKzUZqZ7eXMYyLCVgX"
	lines := `{"Schema":"unknown","Whatever":1}
{"Schema":"peer","ID":"` + id + `","Addrs":["/ip4/127.0.0.1/tcp/1","nonsense","/ip4/127.0.0.1/tcp/2/p2p/` + other + `","/ip4/127.0.0.1/tcp/3/p2p/` + id + `","/p2p/` + id + `"]}
`
	var got []peer.AddrInfo
	if err := readProviders(strings.NewReader(lines), typeNDJSON, 10, func(p peer.AddrInfo) { got = append(got, p) }); err != nil {
		t.Fatal(err)
	}
	want := []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/1"), ma.StringCast("/ip4/127.0.0.1/tcp/3")}
	if len(got) != 1 || got[0].ID.String() != id || !slices.EqualFunc(got[0].Addrs, want, ma.Multiaddr.Equal) {
		t.Errorf("got %v", got)
	}
}

func FuzzReadProviders(f *testing.F) {
	f.Add(`{"Providers":[{"Schema":"peer","ID":"12D3KooWQQe2yFFNE4iqMz1HFBhd2CGN4f5XD9MgB4YNBLyjsqt8","Addrs":["/ip4/127.0.0.1/tcp/1"]}]}`, true)
	f.Add(`{"ID":"12D3KooWQQe2yFFNE4iqMz1HFBhd2CGN4f5XD9MgB4YNBLyjsqt8","Addrs":["/dns/a/tcp/1/p2p/x"]}`, false)
	f.Fuzz(func(t *testing.T, body string, whole bool) {
		mediaType := typeNDJSON
		if whole {
			mediaType = typeJSON
		}
		n := 0
		err := readProviders(strings.NewReader(body), mediaType, 3, func(p peer.AddrInfo) {
			n++
			if p.ID.Validate() != nil || len(p.Addrs) > maxRouterAddrs {
				t.Errorf("gave %v", p)
			}
		})
		if n > 3 {
			t.Errorf("gave %d, %v", n, err)
		}
	})
}
