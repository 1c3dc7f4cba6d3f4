package direct

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/gostream"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"go.uber.org/goleak"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a Store in memory.
type memory struct {
	mu     sync.Mutex
	blocks map[string][]byte // by multihash
	files  map[cid.Cid][]ipfs.Leaf
	read   map[string]int
	opened int // calls of Leaves
}

func newMemory() *memory {
	return &memory{blocks: map[string][]byte{}, files: map[cid.Cid][]ipfs.Leaf{}, read: map[string]int{}}
}

func (m *memory) View(c cid.Cid, fn func(data []byte) error) error {
	m.mu.Lock()
	data, ok := m.blocks[hash(c)]
	if ok {
		m.read[hash(c)]++
	}
	m.mu.Unlock()
	if !ok {
		return fmt.Errorf("%s: %w", c, ErrNotHeld)
	}
	return fn(data)
}

func (m *memory) Holds(c cid.Cid) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.blocks[hash(c)] != nil
}

func (m *memory) Leaves(root cid.Cid) ([]ipfs.Leaf, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.opened++
	leaves, ok := m.files[root]
	if !ok {
		return nil, ErrNotHeld
	}
	return leaves, nil
}

func (m *memory) put(bs ...blocks.Block) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range bs {
		m.blocks[hash(b.Cid())] = bytes.Clone(b.RawData())
	}
}

// without takes blocks away.
func (m *memory) without(bs ...blocks.Block) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range bs {
		delete(m.blocks, hash(b.Cid()))
	}
}

// reads counts how often a file's leaves were read to be served. Its root may
// be asked of several at once.
func (m *memory) reads(f testFile) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range f.leaves {
		n += m.read[hash(l.Cid())]
	}
	return n
}

// testFile is a file of random leaves; its root is a block like any other.
type testFile struct {
	root   blocks.Block
	leaves []blocks.Block
}

func newFile(t testing.TB, seed uint64, leaves, size int) testFile {
	t.Helper()
	f := testFile{root: blockstest.Random(t, seed<<32, 100)}
	for i := range leaves {
		f.leaves = append(f.leaves, blockstest.Random(t, seed<<32+uint64(i)+1, size))
	}
	return f
}

func (f testFile) list() []ipfs.Leaf {
	var out []ipfs.Leaf
	var off int64
	for _, b := range f.leaves {
		out = append(out, ipfs.Leaf{Offset: off, Size: int64(len(b.RawData())), CID: b.Cid()})
		off += int64(len(b.RawData()))
	}
	return out
}

func (f testFile) want(bulk bool) ipfs.Want {
	w := ipfs.Want{Root: f.root.Cid(), Bulk: bulk}
	for _, b := range f.leaves {
		w.CIDs = append(w.CIDs, b.Cid())
	}
	return w
}

// know puts the list of a file's leaves into a store, as if it had been opened.
func (m *memory) know(f testFile) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files[f.root.Cid()] = f.list()
}

func newHost(t testing.TB) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.Transport(tcp.NewTCPTransport),
		libp2p.ResourceManager(&network.NullResourceManager{}), libp2p.ConnectionManager(connmgr.NullConnMgr{}),
		libp2p.DisableRelay(), libp2p.DisableIdentifyAddressDiscovery(), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// node is an exchange with its host and store.
type node struct {
	*Exchange
	*memory
	mu     sync.Mutex
	banned map[peer.ID]string
}

func newNode(t testing.TB) *node {
	t.Helper()
	n := &node{memory: newMemory(), banned: map[peer.ID]string{}}
	x, err := New(Config{
		Host: newHost(t), Store: n.memory, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		Keep: func(b blocks.Block) { n.put(b) },
		Ban: func(p peer.ID, reason string) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.banned[p] = reason
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	n.Exchange = x
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func (n *node) isBanned(p peer.ID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.banned[p] != ""
}

// hold puts blocks of a file into the node.
func (n *node) hold(f testFile, bs ...blocks.Block) {
	n.know(f)
	for _, b := range slices.Concat(bs, []blocks.Block{f.root}) {
		n.put(b)
		n.Arrived(b, nil)
	}
}

// join connects the node and waits until it knows what the others speak.
func (n *node) join(t testing.TB, others ...host.Host) {
	t.Helper()
	for _, h := range others {
		if err := n.Host.Connect(t.Context(), peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all peers are known", func() bool {
		have := map[peer.ID]bool{}
		for _, id := range n.Peers() {
			have[id] = true
		}
		for _, h := range others {
			if !have[h.ID()] {
				return false
			}
		}
		return true
	})
}

// eventually waits for what must come about; a minute is far more than it
// takes.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it never came about that %s", what)
		}
	}
}

// gateway is a peer that serves by HTTP as the test says, and tells nothing.
func gateway(t testing.TB, handler http.HandlerFunc) host.Host {
	t.Helper()
	h := newHost(t)
	l, err := gostream.Listen(h, httpProtocol, gostream.IgnoreEOF())
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
	return h
}

// serving is a handler that gives the blocks of a file.
func serving(f testFile) http.HandlerFunc {
	data := map[string][]byte{}
	for _, b := range slices.Concat(f.leaves, []blocks.Block{f.root}) {
		data[b.Cid().String()] = b.RawData()
	}
	return func(w http.ResponseWriter, r *http.Request) {
		d, ok := data[r.URL.Path[len("/ipfs/"):]]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(d)
	}
}

// fetch gets blocks, and fails the test unless each comes once and is right.
func fetch(ctx context.Context, t testing.TB, x *Exchange, w ipfs.Want) {
	t.Helper()
	if err := tryFetch(ctx, t, x, w); err != nil {
		t.Fatal(err)
	}
}

func tryFetch(ctx context.Context, t testing.TB, x *Exchange, w ipfs.Want) error {
	t.Helper()
	var mu sync.Mutex
	got := map[cid.Cid]bool{}
	err := x.Fetch(ctx, w, func(c cid.Cid, data []byte) error {
		mu.Lock()
		defer mu.Unlock()
		if got[c] {
			t.Errorf("%s was given twice", c)
		}
		got[c] = true
		return ipfs.Verify(c, data)
	}, func(cid.Cid) {})
	if err == nil {
		for _, c := range w.CIDs {
			if !got[c] {
				t.Errorf("%s was not given", c)
			}
		}
	}
	return err
}
