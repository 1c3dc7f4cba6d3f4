package kubo

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
)

const (
	somePeer  = "12D3KooWJRSrypvnpHgc6ZAgyCni4KcSmbV7uGRaMw5LgMKT18fq"
	otherPeer = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
)

// A block that the daemon does not have comes after it was made to connect to
// a provider of the root; it searches once.
func TestSearch(t *testing.T) {
	root, b := blockstest.Random(t, 1, 1000), blockstest.Random(t, 2, 1000)
	connected := make(chan struct{})
	var once sync.Once
	var searched atomic.Int32
	c := client(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		switch strings.TrimPrefix(r.URL.Path, "/api/v0/") {
		case "routing/findprovs":
			searched.Add(1)
			if q.Get("arg") != root.Cid().String() {
				t.Errorf("a search for %s, want the root", q.Get("arg"))
			}
			fmt.Fprintf(w, `{"Type":1,"Responses":[{"ID":"%s","Addrs":[]}]}`+"\n", otherPeer)
			fmt.Fprintf(w, `{"Type":4,"Responses":[{"ID":"%s","Addrs":["/ip4/192.0.2.7/tcp/4001","nonsense"]}]}`+"\n", somePeer)
		case "swarm/connect":
			want := "/p2p/" + somePeer + " /ip4/192.0.2.7/tcp/4001/p2p/" + somePeer
			if got := strings.Join(q["arg"], " "); got != want {
				t.Errorf("connect to %s, want %s", got, want)
			}
			once.Do(func() { close(connected) })
		case "block/get":
			select {
			case <-connected:
				if _, err := w.Write(b.RawData()); err != nil {
					t.Error(err)
				}
			case <-r.Context().Done():
			}
		}
	}, External(), WithTimeout(time.Minute))
	for range 2 {
		err := c.Get(t.Context(), ipfs.Want{CIDs: []cid.Cid{b.Cid()}, Root: root.Cid()}, func(cid.Cid, []byte) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := searched.Load(); n != 1 {
		t.Errorf("%d searches, want 1", n)
	}
}

// Searches are bounded: one for a root in a while, few at once, few remembered.
func TestSearchesAreBounded(t *testing.T) {
	s := newSearches()
	root := blockstest.Random(t, 1, 10).Cid()
	if !s.begin(root) || s.begin(root) {
		t.Error("want one search for a root")
	}
	s.end(root, false)
	if !s.begin(root) {
		t.Error("a search that was cut short is not made again")
	}
	s.end(root, true)
	for i := range searchesAtOnce + 1 {
		if s.begin(blockstest.Random(t, uint64(100+i), 10).Cid()) != (i < searchesAtOnce) {
			t.Errorf("search %d at once", i)
		}
	}
	s = newSearches()
	for i := range 2 * maxSearched {
		c := blockstest.Random(t, uint64(i), 10).Cid()
		if s.begin(c) {
			s.end(c, true)
		}
	}
	if len(s.last) != maxSearched {
		t.Errorf("%d roots are remembered", len(s.last))
	}
}

func FuzzReadProviders(f *testing.F) {
	f.Add(fmt.Sprintf(`{"Type":4,"Responses":[{"ID":"%s","Addrs":["/ip4/192.0.2.7/tcp/4001"]}]}`, somePeer))
	f.Add(fmt.Sprintf(`{"Type":4,"Responses":[null,{"ID":"%s","Addrs":["/ip4/192.0.2.7/tcp/4001/p2p/%s"]}]}{}`, somePeer, somePeer))
	f.Add(`{"Type":"4"}`)
	f.Fuzz(func(t *testing.T, s string) {
		n := 0
		readProviders(strings.NewReader(s), func(addrs []string) bool {
			n++
			if len(addrs) == 0 || len(addrs) > maxAddrs+1 {
				t.Errorf("%d addresses", len(addrs))
			}
			for _, a := range addrs {
				if !strings.Contains(a, "/p2p/") {
					t.Errorf("address %q has no peer", a)
				}
			}
			return n < maxProviders
		})
		if n > maxProviders {
			t.Errorf("%d providers", n)
		}
	})
}

// However many wants wait without hurry, one that somebody waits for is sent.
func TestDemandDoesNotWaitForBulk(t *testing.T) {
	b := blockstest.Random(t, 1, 1000)
	var full sync.WaitGroup
	full.Add(bulkGets)
	c := client(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("arg") == b.Cid().String() {
			if _, err := w.Write(b.RawData()); err != nil {
				t.Error(err)
			}
			return
		}
		full.Done() // panics at one too many
		hang(w, r)
	}, WithTimeout(time.Minute))
	var bulk []cid.Cid
	for i := range 3 * bulkGets {
		bulk = append(bulk, blockstest.Random(t, uint64(10+i), 10).Cid())
	}
	var over sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for i := range 3 {
		over.Go(func() {
			_ = c.Get(ctx, ipfs.Want{CIDs: bulk[i*bulkGets : (i+1)*bulkGets], Bulk: true}, func(cid.Cid, []byte) error { return nil })
		})
	}
	full.Wait()
	err := c.Get(t.Context(), ipfs.Want{CIDs: []cid.Cid{b.Cid()}}, func(cid.Cid, []byte) error { return nil })
	if err != nil {
		t.Error(err)
	}
	cancel()
	over.Wait()
}

// A Get opens about as many connections as it has requests under way, and all
// Gets after it use them again, also after answers that are errors.
func TestConnectionsAreReused(t *testing.T) {
	held := map[string][]byte{}
	var have, gone []cid.Cid
	for i := range 1000 {
		b := blockstest.Random(t, uint64(i), 5000)
		held[b.Cid().String()] = b.RawData()
		have = append(have, b.Cid())
		gone = append(gone, blockstest.Random(t, uint64(5000+i), 10).Cid())
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, ok := held[r.URL.Query().Get("arg")]
		if !ok {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusInternalServerError)
			data = []byte(`{"Message":"not here","Code":0,"Type":"error"}` + strings.Repeat(" ", 10_000))
		}
		_, _ = w.Write(data)
	}))
	var opened atomic.Int32
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	s.Start()
	defer s.Close()
	c, err := New(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		if err := c.Get(t.Context(), ipfs.Want{CIDs: have}, func(cid.Cid, []byte) error { return nil }); err != nil {
			t.Fatal(err)
		}
		if err := c.Get(t.Context(), ipfs.Want{CIDs: gone, Bulk: true}, func(cid.Cid, []byte) error { return nil }); err == nil {
			t.Fatal("what is gone was had")
		}
	}
	if n := opened.Load(); n > 8*parallelGets {
		t.Errorf("%d connections for 6000 requests of which %d were under way at once", n, parallelGets)
	}
}
