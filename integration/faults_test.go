package integration

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
)

// This file takes peers away from a daemon that reads. Peers that are there and
// misbehave are the business of the tests beside the code.

const (
	// faultBits keeps a read of faultBytes under way for some seconds.
	faultBits  = 50e6
	faultBytes = 12 << 20
	// faultTimeout is the readers' fetch_timeout where it is meant to pass.
	faultTimeout = 3 * time.Second
)

// TestBestPeerKilled kills, in the middle of a read, the one of two holders
// that has sent more: the read goes on with the other.
func TestBestPeerKilled(t *testing.T) {
	bed := newIPFSBed(t, testbed.Options{Nodes: 3, BitsPerSecond: faultBits})
	holders, reader := bed.Nodes[:2], bed.Nodes[2]
	data := randomFile(11, faultBytes)
	var peers []string
	var root cid.Cid
	for _, n := range holders {
		peers = append(peers, startDaemon(t, n, testbed.DaemonConfig{}))
		root = addFile(t, n, data)
	}
	startDaemon(t, reader, testbed.DaemonConfig{Peers: peers})

	read := startRead(t, reader, root)
	read.waitFor(t, faultBytes/6)
	best, most := 0, int64(-1)
	for i, n := range holders {
		traffic, err := n.Namespace.Traffic()
		if err != nil {
			t.Fatal(err)
		}
		if traffic.Sent > most {
			best, most = i, traffic.Sent
		}
	}
	if err := holders[best].KillDaemon(); err != nil {
		t.Fatal(err)
	}
	if got := read.rest(t); hash(got) != hash(data) {
		t.Errorf("%d bytes of %d arrived, or others", len(got), len(data))
	}
	// What it left mounted goes when it ends in order.
	startDaemon(t, holders[best], testbed.DaemonConfig{})
}

// TestLinkCut pulls the only holder's cable in the middle of a read, waits
// until nothing comes any more, and puts it back: the read goes on.
func TestLinkCut(t *testing.T) {
	bed := newIPFSBed(t, testbed.Options{Nodes: 2, BitsPerSecond: faultBits})
	holder, reader := bed.Nodes[0], bed.Nodes[1]
	data := randomFile(12, faultBytes)
	peer := startDaemon(t, holder, testbed.DaemonConfig{})
	root := addFile(t, holder, data)
	startDaemon(t, reader, testbed.DaemonConfig{Peers: []string{peer}, FetchTimeout: time.Minute})

	read := startRead(t, reader, root)
	read.waitFor(t, faultBytes/6)
	if err := bed.Net.Cut(0, true); err != nil {
		t.Fatal(err)
	}
	before := int64(-1)
	eventually(t, "nothing to arrive over a link that is cut", func() bool {
		traffic, err := reader.Namespace.Traffic()
		if err != nil {
			t.Fatal(err)
		}
		quiet := traffic.Received == before
		before = traffic.Received
		return quiet
	})
	if read.ended() {
		t.Error("the whole file arrived before the link was cut: this test tests nothing")
	}
	if err := bed.Net.Cut(0, false); err != nil {
		t.Fatal(err)
	}
	if got := read.rest(t); hash(got) != hash(data) {
		t.Errorf("%d bytes of %d arrived, or others", len(got), len(data))
	}
}

// TestNoPeer reads while there is nobody to read from, because the only holder
// has stopped or its link is cut: an error says what is missing and who was
// asked. Once the holder is back, reads work.
func TestNoPeer(t *testing.T) {
	bed := newIPFSBed(t, testbed.Options{Nodes: 2})
	holder, reader := bed.Nodes[0], bed.Nodes[1]
	peer := startDaemon(t, holder, testbed.DaemonConfig{})
	conf := testbed.DaemonConfig{Peers: []string{peer}, FetchTimeout: faultTimeout}
	_, holderID, _ := strings.Cut(peer, "/p2p/")
	startDaemon(t, reader, conf)
	client := rpc(t, reader)

	// Each time of something new, which the reader cannot have.
	seed := uint64(20)
	next := func() (cid.Cid, []byte) {
		seed++
		data := randomFile(seed, 300<<10)
		return addFile(t, holder, data), data
	}
	works := func() {
		t.Helper()
		root, data := next()
		eventually(t, "a read to work", func() bool {
			got, err := cat(t.Context(), client, root, 0, -1)
			if err != nil {
				t.Log(err)
			}
			return err == nil && hash(got) == hash(data)
		})
	}
	works()

	for _, gone := range []struct {
		how        string
		take, back func() error
		asked      []string // what the error says of whom was asked, one of these
	}{
		{"its link is cut", func() error { return bed.Net.Cut(0, true) }, func() error { return bed.Net.Cut(0, false) }, []string{holderID}},
		{"it has stopped", holder.StopDaemon, func() error { return holder.StartDaemon(t.Context(), testbed.DaemonConfig{}) }, []string{holderID, "no peer"}},
	} {
		root, _ := next()
		if err := gone.take(); err != nil {
			t.Fatal(err)
		}
		err := failedCat(t, client, root)
		if !strings.Contains(err.Error(), root.String()) {
			t.Errorf("%s: the error does not say what is missing, %s: %v", gone.how, root, err)
		}
		if !slices.ContainsFunc(gone.asked, func(s string) bool { return strings.Contains(err.Error(), s) }) {
			t.Errorf("%s: the error does not say whom it asked, want one of %q: %v", gone.how, gone.asked, err)
		}
		if err := gone.back(); err != nil {
			t.Fatal(err)
		}
		works()
	}
}

// failedCat reads what cannot be had, and gives the error. That it comes at all
// is what is wanted: the client would wait for much longer than the daemon.
func failedCat(t *testing.T, c *kubo.Client, root cid.Cid) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := cat(ctx, c, root, 0, -1)
	if err == nil || ctx.Err() != nil {
		t.Fatalf("reading what nobody has: %v, after %v: %v", err, faultTimeout, ctx.Err())
	}
	return err
}

// reading is a read of a whole file under way.
type reading struct {
	progress chan int64 // bytes so far
	done     chan struct{}
	data     []byte
	err      error
}

// startRead reads a file through a node.
func startRead(t *testing.T, n *testbed.Node, root cid.Cid) *reading {
	t.Helper()
	client := rpc(t, n)
	r := &reading{progress: make(chan int64, 1), done: make(chan struct{})}
	go func() {
		defer close(r.done)
		body, err := client.Cat(t.Context(), root.String(), 0, -1)
		if err != nil {
			r.err = err
			return
		}
		defer body.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := body.Read(buf)
			r.data = append(r.data, buf[:n]...)
			select {
			case <-r.progress: // the last one was not looked at
			default:
			}
			r.progress <- int64(len(r.data))
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				r.err = err
				return
			}
		}
	}()
	t.Cleanup(func() { <-r.done })
	return r
}

// waitFor waits until so many bytes have arrived.
func (r *reading) waitFor(t *testing.T, bytes int64) {
	t.Helper()
	for {
		select {
		case n := <-r.progress:
			if n >= bytes {
				return
			}
		case <-r.done:
			t.Fatalf("the read ended after %d bytes: %v", len(r.data), r.err)
		case <-time.After(time.Minute):
			t.Fatal("the read does not go on")
		}
	}
}

func (r *reading) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// rest waits for the end and gives the whole file.
func (r *reading) rest(t *testing.T) []byte {
	t.Helper()
	select {
	case <-r.done:
	case <-time.After(2 * time.Minute):
		t.Fatal("the read does not end")
	}
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.data
}
