package main

import (
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/config"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/node"
)

// What the node lacks comes from the Kubo daemon, what that lacks from the
// gateway, and both are in the node's store then.
func TestOpenSources(t *testing.T) {
	here, kubos, gateways := blockstest.Random(t, 1, 1000), blockstest.Random(t, 2, 1000), blockstest.Random(t, 3, 1000)
	server := func(prefix string, b blocks.Block) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasPrefix(r.URL.Path, prefix) || !strings.Contains(r.URL.String(), b.Cid().String()) {
				http.Error(w, "not here", http.StatusInternalServerError) // as Kubo does
				return
			}
			_, _ = w.Write(b.RawData()) // the client may have gone
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	n, err := node.Open(t.Context(), node.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.Put(t.Context(), here); err != nil {
		t.Fatal(err)
	}
	cfg := config.Default()
	cfg.IPFS.Mode = config.ModePublic
	cfg.IPFS.Sources = []string{config.SourceNode, config.SourceKubo, config.SourceGateway}
	cfg.IPFS.FetchTimeout = config.Duration(10 * time.Second)
	cfg.IPFS.Kubo.Address = server("/api/v0/block/get", kubos)
	cfg.IPFS.Gateway.URLs = []string{server("/ipfs/", gateways)}
	if err := cfg.Check(); err != nil {
		t.Fatal(err)
	}
	from, err := openSources(cfg.IPFS, n, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	all := []cid.Cid{here.Cid(), kubos.Cid(), gateways.Cid()}
	for _, b := range []ipfs.Blocks{from, reading{n, from}, n} { // the last has them now
		var got []cid.Cid
		err := b.Get(t.Context(), ipfs.Want{CIDs: all}, func(c cid.Cid, _ []byte) error { got = append(got, c); return nil })
		if err != nil || len(got) != len(all) {
			t.Fatalf("%v, %v", got, err)
		}
	}
	gone := blockstest.Random(t, 4, 10).Cid()
	err = from.Get(t.Context(), ipfs.Want{CIDs: []cid.Cid{gone}}, func(cid.Cid, []byte) error { return nil })
	var u *ipfs.UnavailableError
	if !errors.As(err, &u) || len(u.Asked) != 3 || !slices.ContainsFunc(u.Asked, func(a string) bool { return strings.HasPrefix(a, "kubo: http://127.0.0.1") }) {
		t.Errorf("what nobody has: %v", err)
	}
}

// The node alone needs no chain.
func TestOpenSourcesNodeAlone(t *testing.T) {
	n, err := node.Open(t.Context(), node.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	from, err := openSources(config.Default().IPFS, n, slog.New(slog.DiscardHandler))
	if err != nil || from.Blocks != ipfs.Blocks(n) {
		t.Errorf("%v, %v", from, err)
	}
}

// In private mode a Kubo daemon elsewhere is not talked to, though a file may
// say so.
func TestOpenKuboPrivate(t *testing.T) {
	for mode, refused := range map[string]bool{config.ModePrivate: true, config.ModePublic: false} {
		c, err := openKubo(config.IPFS{Mode: mode, FetchTimeout: config.Duration(50 * time.Millisecond), Kubo: config.Kubo{Address: "http://127.0.0.1:1"}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.ID(t.Context()); err == nil {
			t.Fatal("somebody listens at port 1")
		}
		c, err = openKubo(config.IPFS{Mode: mode, FetchTimeout: config.Duration(time.Second), Kubo: config.Kubo{Address: "http://0.0.0.0:1"}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.ID(t.Context())
		if err == nil || strings.Contains(err.Error(), "not on this machine") != refused {
			t.Errorf("mode %s: %v", mode, err)
		}
	}
}
