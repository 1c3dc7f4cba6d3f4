package agent

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Argument {
		if err := Serve(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func newBed(t *testing.T, nodes int) *testbed.Bed {
	t.Helper()
	bed, err := testbed.New(testbed.Options{Nodes: nodes, NoContainerd: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(bed.Logs())
		}
		if err := bed.Close(); err != nil {
			t.Error(err)
		}
	})
	return bed
}

func start(t *testing.T, n *testbed.Node) *Agent {
	t.Helper()
	a, err := Start(t.Context(), n, "agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// TestKinds has a peer of each kind fetch, in each mode, what another one of
// its kind holds in another namespace.
func TestKinds(t *testing.T) {
	content := Content{Seed: 7, Size: 1<<20 + 5, Leaf: 64 << 10}
	for _, kind := range []Kind{Node, Bitswap, BitswapTuned} {
		t.Run(string(kind), func(t *testing.T) {
			bed := newBed(t, 2)
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			ctx := t.Context()
			from, to := bed.Nodes[0], bed.Nodes[1]
			seeder, reader := start(t, from), start(t, to)
			id, err := reader.Identify(ctx, Identify{to.Dir + "/n"})
			must(err)
			seeding, err := seeder.Open(ctx, Open{
				Kind: kind, Dir: from.Dir + "/n", Peers: []string{"/p2p/" + id.ID},
				Listen: []string{fmt.Sprintf("/ip4/%s/tcp/4001", from.Namespace.Addr)},
			})
			must(err)
			seeded, err := seeder.Seed(ctx, Seed{Peer: seeding.Peer, Content: content})
			must(err)
			reading, err := reader.Open(ctx, Open{
				Kind: kind, Dir: to.Dir + "/n", Peers: seeding.Addrs, FetchTimeout: time.Minute,
			})
			must(err)
			must(reader.Connect(ctx, Connect{reading.Peer, 1}))
			f := Fetch{Peer: reading.Peer, Root: seeded.Root, Size: content.Size}
			for _, part := range []struct {
				mode     Mode
				first, n int
				bytes    int64
			}{
				{Range, 0, 3, 3 * content.Leaf},
				{Each, 3, 2, 2 * content.Leaf},
				{Bulk, 0, -1, content.Size},
			} {
				f.Mode, f.First, f.N = part.mode, part.first, part.n
				got, err := reader.Fetch(ctx, f, nil)
				must(err)
				if got.Bytes != part.bytes || got.Missing != 0 || got.Took <= 0 || got.HeapPeak < got.HeapBefore || got.HeapBefore <= 0 {
					t.Errorf("%s: %+v, want %d bytes", part.mode, got, part.bytes)
				}
				if part.mode == Each && len(got.Each) != part.n {
					t.Errorf("%d leaves took %v", part.n, got.Each)
				}
				if part.mode == Bulk && got.Leaves.Count() != content.Leaves() {
					t.Errorf("%d leaves of %d", got.Leaves.Count(), content.Leaves())
				}
			}
			v := Verify{reading.Peer, seeded.Root, content}
			must(reader.Verify(ctx, v))
			v.Content.Seed++
			if err := reader.Verify(ctx, v); err == nil {
				t.Error("other content was taken for the same")
			}
			use, err := reader.Usage(ctx)
			must(err)
			if use.CPU <= 0 {
				t.Errorf("the reader used %v", use.CPU)
			}
		})
	}
}

// TestUnavailable says what is missing, reports what there is, and goes on.
func TestUnavailable(t *testing.T) {
	bed := newBed(t, 1)
	n := bed.Nodes[0]
	a := start(t, n)
	content := Content{Seed: 1, Size: 10 << 10, Leaf: 1 << 10}
	p, err := a.Open(t.Context(), Open{Kind: Node, Dir: n.Dir + "/n"})
	if err != nil {
		t.Fatal(err)
	}
	seeded, err := a.Seed(t.Context(), Seed{Peer: p.Peer, Content: content, Of: 5, Nth: 2, Copies: 1})
	if err != nil {
		t.Fatal(err)
	}
	got, err := a.Fetch(t.Context(), Fetch{Peer: p.Peer, Root: seeded.Root, Size: content.Size, Mode: Bulk, N: -1, Progress: true}, func(Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	if got.Missing != 8 || got.Unavailable == "" || got.Leaves.Count() > 2 {
		t.Errorf("of two leaves in ten: %+v", got)
	}
	for _, f := range []Fetch{
		{Peer: 9, Root: seeded.Root},
		{Peer: p.Peer, Root: "no CID"},
		{Peer: p.Peer, Root: seeded.Root, Size: content.Size, First: 5, N: 6, Mode: Bulk},
		{Peer: p.Peer, Root: seeded.Root, Size: content.Size, N: 1, Mode: "no mode"},
	} {
		if _, err := a.Fetch(t.Context(), f, nil); err == nil || !strings.HasPrefix(err.Error(), "agent: Fetch: ") {
			t.Errorf("%+v: %v", f, err)
		}
	}
}

// TestKill ends an agent under way: the call says so, and nothing is left.
func TestKill(t *testing.T) {
	bed := newBed(t, 1)
	a := start(t, bed.Nodes[0])
	failed := make(chan error, 1)
	go func() {
		_, err := a.Identify(context.Background(), Identify{bed.Nodes[0].Dir + "/n"})
		for err == nil {
			_, err = a.Usage(context.Background())
		}
		failed <- err
	}()
	if err := a.Kill(); err != nil {
		t.Error(err)
	}
	if err := <-failed; err == nil {
		t.Error("a killed agent answers")
	}
	if err := a.Close(); err != nil {
		t.Errorf("closing what was killed: %v", err)
	}
}

func TestBits(t *testing.T) {
	a, b := NewBits(9), NewBits(20)
	a.Set(0)
	a.Set(8)
	b.Set(8)
	b.Set(19)
	if sum := a.Join(b); sum.Count() != 3 || a.Count() != 2 || b.Count() != 2 {
		t.Errorf("%d leaves of %d and %d", sum.Count(), a.Count(), b.Count())
	}
}

// TestCopies spreads each leaf over as many peers as wanted.
func TestCopies(t *testing.T) {
	for leaf := range 200 {
		holders := 0
		for nth := range 50 {
			if (Seed{Nth: nth, Of: 50, Copies: 3}).keeps(leaf) {
				holders++
			}
		}
		if holders != 3 {
			t.Fatalf("leaf %d has %d holders", leaf, holders)
		}
	}
	if !(Seed{}).keeps(5) {
		t.Error("without Of all leaves are kept")
	}
}
