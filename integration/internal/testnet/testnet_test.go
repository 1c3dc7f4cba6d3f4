package testnet

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// transfer moves n bytes over TCP between two nodes and gives how long it took.
func transfer(t *testing.T, from, to *Namespace, n int64) time.Duration {
	t.Helper()
	l, err := from.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sent := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			sent <- err
			return
		}
		_, err = io.CopyN(c, zeros{}, n)
		sent <- errors.Join(err, c.Close())
	}()
	var c net.Conn
	if err := to.Do(func() (err error) {
		c, err = net.Dial("tcp", l.Addr().String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	begin := time.Now()
	got, err := io.Copy(io.Discard, c)
	if err := errors.Join(err, <-sent); err != nil || got != n {
		t.Fatalf("%d bytes of %d arrived: %v", got, n, err)
	}
	return time.Since(begin)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestRate moves bytes over a shaped link: they cannot be there sooner than
// the rate allows, and the counters have them all, with few headers.
func TestRate(t *testing.T) {
	n, err := New(2)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.SetRate(100e6); err != nil {
		t.Fatal(err)
	}
	before, err := n.Nodes[1].Traffic()
	if err != nil {
		t.Fatal(err)
	}
	const size = 25_000_000 // 2 seconds
	took := transfer(t, n.Nodes[0], n.Nodes[1], size)
	after, err := n.Nodes[1].Traffic()
	if err != nil {
		t.Fatal(err)
	}
	if got := after.Sub(before).Received; got < size || got > size*11/10 {
		t.Errorf("%d bytes counted for %d moved", got, size)
	}
	t.Logf("%d bytes in %v: %.1f Mbit/s", size, took, size*8/took.Seconds()/1e6)
	if took < 1800*time.Millisecond {
		t.Errorf("%d bytes came over a link of 100 Mbit/s in %v", size, took)
	}
	if err := n.SetRate(0); err != nil {
		t.Fatal(err)
	}
	for _, ns := range n.Nodes {
		link, err := ns.handle.LinkByName(LinkName)
		if err != nil {
			t.Fatal(err)
		}
		list, err := ns.handle.QdiscList(link)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range list {
			if q.Type() == "tbf" {
				t.Errorf("the link of %s is still shaped: %v", ns.Addr, q)
			}
		}
	}
}

// TestCut pulls a cable and puts it back.
func TestCut(t *testing.T) {
	n, err := New(3)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	transfer(t, n.Nodes[2], n.Nodes[0], 1000)
	if err := n.Cut(2, true); err != nil {
		t.Fatal(err)
	}
	l, err := n.Nodes[2].Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = n.Nodes[0].Do(func() error {
		c, err := net.DialTimeout("tcp", l.Addr().String(), 200*time.Millisecond)
		if err == nil {
			return c.Close()
		}
		return err
	})
	if err == nil {
		t.Error("the node can be reached while its link is cut")
	}
	if err := n.Cut(2, false); err != nil {
		t.Fatal(err)
	}
	transfer(t, n.Nodes[2], n.Nodes[0], 1000)
}

// TestStart runs a program in a namespace: it sees the namespace's link, and
// this process still sees its own.
func TestStart(t *testing.T) {
	n, err := New(1)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "cat", "/proc/net/dev")
	cmd.Stdout = &out
	if err := errors.Join(n.Nodes[0].Start(cmd), cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), LinkName+":") || strings.Count(out.String(), ":") != 2 {
		t.Errorf("the program sees these links, want lo and %s:\n%s", LinkName, out.String())
	}
	if _, err := os.Stat(n.Nodes[0].Path()); err != nil {
		t.Error(err)
	}
}
