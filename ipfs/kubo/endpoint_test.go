package kubo

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
)

// Name and password of a URL reach the daemon and nobody else: no error has
// them, whatever goes wrong.
func TestBasicAuth(t *testing.T) {
	b := blockstest.Random(t, 1, 1000)
	over := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name, password, ok := r.BasicAuth(); !ok || name != "someone" || password != "s3cret" {
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		switch {
		case strings.HasSuffix(r.URL.Path, "/block/get") && r.URL.Query().Get("arg") == b.Cid().String():
			if _, err := w.Write(b.RawData()); err != nil {
				t.Error(err)
			}
		case strings.HasSuffix(r.URL.Path, "/version"):
			http.Redirect(w, r, "http://someone:s3cret@127.0.0.1:1/", http.StatusTemporaryRedirect)
		case strings.HasSuffix(r.URL.Path, "/id"):
			panic(http.ErrAbortHandler)
		default:
			hang(w, r.WithContext(context.WithValue(r.Context(), testOver{}, over)))
		}
	}))
	defer s.Close()
	defer close(over)
	host := strings.TrimPrefix(s.URL, "http://")
	c, err := New("http://someone:s3cret@"+host, WithTimeout(200*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	get := func(c *Client, id cid.Cid) error {
		return c.Get(t.Context(), ipfs.Want{CIDs: []cid.Cid{id}}, func(cid.Cid, []byte) error { return nil })
	}
	if err := get(c, b.Cid()); err != nil {
		t.Errorf("with name and password: %v", err)
	}
	stranger, err := New("http://someone:s3cret-not@" + host)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	nobody, err := New("http://someone:s3cret@" + unused(t))
	if err != nil {
		t.Fatal(err)
	}
	_, redirected := c.Version(t.Context())
	_, aborted := c.ID(t.Context())
	_, err = New("http://someone:s3cret@[::1")
	_, err2 := New("htp://someone:s3cret@host")
	_, err3 := New("http://someone:s3cret%zz@host")
	for name, err := range map[string]error{
		"stranger":     get(stranger, b.Cid()),
		"nobody there": get(nobody, b.Cid()),
		"hang":         get(c, blockstest.Random(t, 2, 10).Cid()),
		"redirected":   redirected,
		"aborted":      aborted,
		"bad URL":      err, "bad scheme": err2, "bad escape": err3,
	} {
		if err == nil || strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "someone") {
			t.Errorf("%s: %v; want an error without name and password", name, err)
		}
	}
	if strings.Contains(c.Addr(), "s3cret") || !strings.Contains(c.Addr(), host) {
		t.Errorf("Addr: %s", c.Addr())
	}
}

// unused returns an address at which nobody listens.
func unused(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// daemon answers every block/get with a block, at a port of its own.
func daemon(t *testing.T, data []byte) (multiaddr string, stop func()) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if _, err := w.Write(data); err != nil {
			t.Error(err)
		}
	}))
	host, port, err := net.SplitHostPort(s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return "/ip4/" + host + "/tcp/" + port, s.Close
}

// The daemon is where its file says, also after it started again elsewhere.
func TestLocal(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("IPFS_PATH", dir)
	file := filepath.Join(dir, "api")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b := blockstest.Random(t, 1, 1000)
	c, err := NewLocal(WithTimeout(10*time.Second), LoopbackOnly())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	get := func() error {
		return c.Get(t.Context(), ipfs.Want{CIDs: []cid.Cid{b.Cid()}}, func(cid.Cid, []byte) error { return nil })
	}
	var u *ipfs.UnavailableError
	if err := get(); !errors.As(err, &u) || !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "running?") {
		t.Errorf("without the file: %v", err)
	}
	write("no address")
	if err := get(); !errors.As(err, &u) || !strings.Contains(err.Error(), file) {
		t.Errorf("with another file: %v", err)
	}
	write(strings.Repeat("x", maxAPIFile+1))
	if err := get(); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("with a long file: %v", err)
	}
	first, stop := daemon(t, b.RawData())
	write(first + "\n")
	if err := get(); err != nil || c.Addr() != first {
		t.Errorf("with the daemon at %s: %v, at %s", first, err, c.Addr())
	}
	stop()
	if err := get(); !errors.As(err, &u) || !strings.Contains(err.Error(), "Kubo daemon running?") {
		t.Errorf("with the daemon stopped: %v", err)
	}
	second, stop := daemon(t, b.RawData())
	defer stop()
	write(second)
	if err := get(); err != nil || c.Addr() != second {
		t.Errorf("with the daemon at %s: %v, at %s", second, err, c.Addr())
	}
	write("/ip4/192.0.2.1/tcp/5001")
	stop()
	if err := get(); !errors.Is(err, ErrNotLoopback) {
		t.Errorf("with an address of another machine: %v", err)
	}
}

// Without IPFS_PATH it is the home directory's.
func TestLocalHome(t *testing.T) {
	t.Setenv("IPFS_PATH", "")
	t.Setenv("HOME", "/home/somebody")
	c, err := NewLocal()
	if err != nil || c.Addr() != "/home/somebody/.ipfs/api" {
		t.Errorf("%v, %v", c, err)
	}
	t.Setenv("HOME", "")
	if _, err := NewLocal(); err == nil || !strings.Contains(err.Error(), "IPFS_PATH") {
		t.Errorf("without a home: %v", err)
	}
}

// In private mode no packet goes to another machine, whatever a name means.
func TestLoopbackOnly(t *testing.T) {
	for _, addr := range []string{"/ip4/192.0.2.1/tcp/5001", "http://192.0.2.1:5001", "https://[2001:db8::1]:5001"} {
		c, err := New(addr, LoopbackOnly())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.ID(t.Context()); !errors.Is(err, ErrNotLoopback) {
			t.Errorf("%s: %v", addr, err)
		}
	}
	b := blockstest.Random(t, 1, 100)
	addr, stop := daemon(t, b.RawData())
	defer stop()
	c, err := New(addr, LoopbackOnly())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Get(t.Context(), ipfs.Want{CIDs: []cid.Cid{b.Cid()}}, func(cid.Cid, []byte) error { return nil }); err != nil {
		t.Error(err)
	}
}

func FuzzAddress(f *testing.F) {
	for _, s := range []string{"/unix/run/x.sock", "/ip4/127.0.0.1/tcp/5001", "http://a:s3cret@h:1/x", "https://h", "http://a:s3cret@[", "x://a:s3cret@h"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, addr string) {
		e, err := newEndpoint(addr, true)
		if err != nil {
			if strings.Contains(addr, "://") && strings.Contains(addr, "s3cret") && strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%q: the error has the password: %v", addr, err)
			}
			return
		}
		if !strings.HasPrefix(e.base, "http://") && !strings.HasPrefix(e.base, "https://") || strings.HasSuffix(e.base, "/") {
			t.Errorf("%q: base %q", addr, e.base)
		}
	})
}
