package image

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	nerdctlipfs "github.com/containerd/stargz-snapshotter/ipfs"
	"github.com/multiformats/go-multiaddr/net"
	"github.com/opencontainers/go-digest"

	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/node"
	"github.com/ipfs-stargz/ipfs-stargz/serve"
)

type noSwarm struct{}

func (noSwarm) ID() string               { return "" }
func (noSwarm) Addrs() []string          { return nil }
func (noSwarm) PeersConnected() []string { return nil }

// serveOn runs the RPC of a daemon that talks to nobody on a listener until the
// test ends.
func serveOn(t testing.TB, l net.Listener) {
	t.Helper()
	n, err := node.Open(context.Background(), node.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	srv := &http.Server{
		Handler: serve.NewHandler(serve.Config{
			Store: n, Pins: n.Local(), Repo: n.Local(), Parts: Parts, Swarm: noSwarm{},
		}),
		ReadHeaderTimeout: time.Second,
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

// newSite returns a client of a daemon that talks to nobody.
func newSite(t testing.TB) *kubo.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l)
	return connectTo(t, "/unix"+socket)
}

// connectTo returns a client of the daemon at a multiaddr.
func connectTo(t testing.TB, addr string) *kubo.Client {
	t.Helper()
	client, err := kubo.New(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// TestThroughTheDaemon pushes, inspects and pulls over the daemon's own RPC on
// its unix socket.
func TestThroughTheDaemon(t *testing.T) {
	d := newSite(t)
	path := twoPlatforms(t, "")
	pushed := push(t, d, path)
	if want := push(t, newDaemon(), path).CID; pushed.CID != want {
		t.Errorf("pushed %s, want %s", pushed.CID, want)
	}
	report, err := Inspect(context.Background(), d, pushed.CID.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range report.Manifests {
		for i, l := range m.Layers {
			if !l.Lazy {
				t.Errorf("%s: layer %d is not lazy: %s", m.Platform, i, l.Why)
			}
		}
	}
	ctx, c := newContainerd(t)
	if result, err := pull(ctx, c.Client, pushed.CID, options(d, pushed.CID)); err != nil || result.FetchedFull != 0 {
		t.Errorf("lazy pull: %+v, %v", result, err)
	}
	ctx, c = newContainerd(t)
	for _, m := range report.Manifests {
		c.lazy.refuse[m.Layers[0].CID] = true
	}
	if result, err := pull(ctx, c.Client, pushed.CID, options(d, pushed.CID)); err != nil || result.FetchedFull == 0 {
		t.Errorf("full pull: %+v, %v", result, err)
	}

	unknown := newDaemon().add(t, []byte("unknown"))
	var missing *ipfs.UnavailableError
	if _, err := pull(ctx, c.Client, unknown, options(d, unknown)); !errors.As(err, &missing) || !strings.Contains(err.Error(), unknown.String()) {
		t.Errorf("unknown CID: %v", err)
	}
}

// TestNoDaemon: the error says what to start.
func TestNoDaemon(t *testing.T) {
	d := connectTo(t, "/unix"+filepath.Join(t.TempDir(), "sock"))
	temp := t.TempDir()
	_, err := Push(context.Background(), PushOptions{Image: twoPlatforms(t, ""), AllPlatforms: true, Daemon: d, TempDir: temp})
	if err == nil || !strings.Contains(err.Error(), "ipfs-stargz serve") {
		t.Errorf("Push = %v", err)
	}
	noTemp(t, temp)
	c := newDaemon().add(t, []byte("x"))
	if _, err := Inspect(context.Background(), d, c.String()); err == nil || !strings.Contains(err.Error(), "ipfs-stargz serve") {
		t.Errorf("Inspect = %v", err)
	}
}

// TestNerdctlReads reads a pushed image from the daemon with the client code of
// nerdctl.
func TestNerdctlReads(t *testing.T) {
	ctx := context.Background()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l)
	addr, err := manet.FromNetAddr(l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	result := push(t, connectTo(t, addr.String()), twoPlatforms(t, ""))

	defer http.DefaultClient.CloseIdleConnections() // nerdctl's client uses it
	repo := t.TempDir()
	if err := os.WriteFile(filepath.Join(repo, "api"), []byte(addr.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	resolver, err := nerdctlipfs.NewResolver(nerdctlipfs.ResolverOptions{Scheme: "ipfs", IPFSPath: repo})
	if err != nil {
		t.Fatal(err)
	}
	name, root, err := resolver.Resolve(ctx, result.CID.String())
	if err != nil {
		t.Fatal(err)
	}
	fetcher, err := resolver.Fetcher(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	index, err := oci.ReadIndex(ctx, fetcher, root)
	if err != nil {
		t.Fatal(err)
	}
	for _, desc := range index.Manifests {
		m, err := oci.ReadManifest(ctx, fetcher, desc)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := oci.ReadConfig(ctx, fetcher, m); err != nil {
			t.Fatal(err)
		}
		for _, l := range m.Layers {
			rc, err := fetcher.Fetch(ctx, l)
			if err != nil {
				t.Fatal(err)
			}
			got, err := digest.FromReader(io.Reader(rc))
			rc.Close()
			if err != nil || got != l.Digest {
				t.Errorf("layer %s: %s, %v", l.Digest, got, err)
			}
		}
	}
}
