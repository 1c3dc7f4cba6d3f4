package discovery

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/path"
	"github.com/ipfs/go-cid"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

func newRouting(t testing.TB, c RoutingConfig) *Routing {
	t.Helper()
	if c.Host == nil {
		c.Host = newHost(t, nil)
	}
	if c.Allowed == nil {
		c.Allowed = everybody
	}
	c.Log = testLog(t)
	r, err := NewRouting(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func find(t testing.TB, r *Routing, root cid.Cid, limit int) (ids []peer.ID) {
	t.Helper()
	for p := range r.FindProviders(t.Context(), root, limit) {
		if len(p.Addrs) == 0 {
			t.Errorf("peer %s has no address", p.ID)
		}
		ids = append(ids, p.ID)
	}
	return ids
}

// chain connects each with the next one.
func chain(t testing.TB, all ...*Routing) {
	t.Helper()
	for i := range all[1:] {
		connect(t, all[i].c.Host, all[i+1].c.Host)
	}
}

// The last one of a chain finds who has a root, at an address where it can
// connect, without having been connected before.
func TestPrivateDHTFindsHolders(t *testing.T) {
	a, b, c := newRouting(t, RoutingConfig{}), newRouting(t, RoutingConfig{}), newRouting(t, RoutingConfig{})
	root := testCID(t, "layer")
	// Announced while nobody is there, it is told to those who come.
	if err := a.Provide(root); err != nil {
		t.Fatal(err)
	}
	if err := a.Provide(root); err != nil {
		t.Errorf("the second time: %v", err)
	}
	chain(t, a, b, c)
	eventually(t, "the holder is found", func() bool { return slices.Equal(find(t, c, root, 10), []peer.ID{a.c.Host.ID()}) })
	for p := range c.FindProviders(t.Context(), root, 1) {
		if err := c.c.Host.Connect(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
	// It does not find itself.
	if ids := find(t, a, root, 10); len(ids) > 0 {
		t.Errorf("the holder found %v", ids)
	}
	if info, err := c.FindPeer(t.Context(), a.c.Host.ID()); err != nil || len(info.Addrs) == 0 {
		t.Errorf("FindPeer: %v, %v", info, err)
	}
	if ids := find(t, c, testCID(t, "another layer"), 10); len(ids) > 0 {
		t.Errorf("nobody has it, but found are %v", ids)
	}
}

func TestFindProvidersIsLimited(t *testing.T) {
	hub := newRouting(t, RoutingConfig{})
	root := testCID(t, "layer")
	for range 5 {
		r := newRouting(t, RoutingConfig{})
		connect(t, r.c.Host, hub.c.Host)
		if err := r.Provide(root); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all are found", func() bool { return len(find(t, hub, root, 10)) == 5 })
	if n := len(find(t, hub, root, 3)); n != 3 {
		t.Errorf("%d were found, want 3", n)
	}
	if n := len(find(t, hub, root, 0)); n != 0 {
		t.Errorf("%d were found, want none", n)
	}
	for range hub.FindProviders(t.Context(), root, 10) {
		break // and nothing leaks, says TestMain
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for p := range hub.FindProviders(ctx, root, 10) {
		t.Errorf("found with a context that has ended: %v", p)
	}
}

// A peer that is not allowed is neither asked nor found.
func TestNotAllowedPeersAreNotFound(t *testing.T) {
	banned, holder := newRouting(t, RoutingConfig{}), newRouting(t, RoutingConfig{})
	r := newRouting(t, RoutingConfig{Allowed: func(p peer.ID) bool { return p != banned.c.Host.ID() }})
	root := testCID(t, "layer")
	for _, x := range []*Routing{banned, holder} {
		connect(t, x.c.Host, r.c.Host)
		if err := x.Provide(root); err != nil {
			t.Fatal(err)
		}
	}
	connect(t, banned.c.Host, holder.c.Host)
	eventually(t, "the other one is found", func() bool { return len(find(t, r, root, 10)) == 1 })
	if ids := find(t, r, root, 10); slices.Contains(ids, banned.c.Host.ID()) {
		t.Errorf("found: %v", ids)
	}
	if id := banned.c.Host.ID(); r.dht.RoutingTable().Find(id) != "" {
		t.Error("it is in the routing table")
	}
}

// signed makes a record of IPNS.
func signed(t testing.TB) (key string, raw []byte) {
	t.Helper()
	sk, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(sk)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := ipns.NewRecord(sk, path.FromCid(testCID(t, "image")), 1, time.Now().Add(time.Hour), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = ipns.MarshalRecord(rec); err != nil {
		t.Fatal(err)
	}
	return string(ipns.NameFromPeer(id).RoutingKey()), raw
}

func TestPrivateDHTKeepsRecords(t *testing.T) {
	a, b, c := newRouting(t, RoutingConfig{}), newRouting(t, RoutingConfig{}), newRouting(t, RoutingConfig{})
	key, raw := signed(t)
	if err := a.PutValue(t.Context(), key, raw); err == nil {
		t.Error("PutValue without peers: no error")
	}
	chain(t, a, b, c)
	eventually(t, "the record is taken", func() bool { return a.PutValue(t.Context(), key, raw) == nil })
	eventually(t, "the record is found", func() bool {
		got, err := c.GetValue(t.Context(), key)
		return err == nil && slices.Equal(got, raw)
	})
	forged := slices.Clone(raw)
	forged[len(forged)-1] ^= 1
	if err := a.PutValue(t.Context(), key, forged); err == nil {
		t.Error("a forged record was taken")
	}
	other, _ := signed(t)
	if got, err := c.GetValue(t.Context(), other); err == nil {
		t.Errorf("a record that nobody made: %q", got)
	}
}

func TestWithoutDHT(t *testing.T) {
	r := newRouting(t, RoutingConfig{NoDHT: true})
	root := testCID(t, "layer")
	if err := r.Provide(root); !errors.Is(err, ErrNoRouting) {
		t.Errorf("Provide: %v", err)
	}
	if ids := find(t, r, root, 10); len(ids) > 0 {
		t.Errorf("found: %v", ids)
	}
	key, raw := signed(t)
	if err := r.PutValue(t.Context(), key, raw); !errors.Is(err, ErrNoRouting) {
		t.Errorf("PutValue: %v", err)
	}
	if _, err := r.GetValue(t.Context(), key); !errors.Is(err, ErrNoRouting) {
		t.Errorf("GetValue: %v", err)
	}
	if _, err := r.FindPeer(t.Context(), r.c.Host.ID()); !errors.Is(err, ErrNoRouting) {
		t.Errorf("FindPeer: %v", err)
	}
}

// aminoServer starts a server of the public DHT's protocol, as others run.
func aminoServer(t testing.TB) host.Host {
	t.Helper()
	h := newHost(t, nil)
	d, err := dht.New(h, dht.Mode(dht.ModeServer))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// The public DHT, on loopback: two of ours that know only its bootstrap peer
// find each other's roots. They ask and announce, and serve it not.
func TestPublicDHT(t *testing.T) {
	first, second, third := aminoServer(t), aminoServer(t), aminoServer(t)
	connect(t, first, second)
	connect(t, second, third)
	boot := []peer.AddrInfo{{ID: first.ID(), Addrs: first.Addrs()}}
	a := newRouting(t, RoutingConfig{Public: true, StandIn: true, Bootstrap: boot})
	b := newRouting(t, RoutingConfig{Public: true, StandIn: true, Bootstrap: boot})
	root := testCID(t, "layer")
	if err := a.Provide(root); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the holder is found", func() bool { return slices.Equal(find(t, b, root, 10), []peer.ID{a.c.Host.ID()}) })
	key, raw := signed(t)
	eventually(t, "a record is taken", func() bool { return a.PutValue(t.Context(), key, raw) == nil })
	eventually(t, "and found", func() bool {
		got, err := b.GetValue(t.Context(), key)
		return err == nil && slices.Equal(got, raw)
	})
	for _, p := range a.c.Host.Mux().Protocols() {
		if p == dht.ProtocolDHT || p == PrivateProtocol {
			t.Errorf("a public node serves %s", p)
		}
	}
}

// A stranger in the public network learns nothing of a private one it is
// connected to, for they have no protocol in common.
func TestPrivateAndPublicDHTDoNotMix(t *testing.T) {
	stranger := aminoServer(t)
	r := newRouting(t, RoutingConfig{})
	connect(t, stranger, r.c.Host)
	if ps := r.c.Host.Mux().Protocols(); slices.Contains(ps, dht.ProtocolDHT) || !slices.Contains(ps, protocol.ID(PrivateProtocol)) {
		t.Errorf("protocols: %v", ps)
	}
	if n := r.dht.RoutingTable().Size(); n != 0 {
		t.Errorf("%d peers in the routing table, want none", n)
	}
}
