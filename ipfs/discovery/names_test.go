package discovery

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	ma "github.com/multiformats/go-multiaddr"
)

// zone is a DNS of one's own.
type zone struct {
	mu  sync.Mutex
	ip  map[string][]net.IPAddr
	txt map[string][]string
	err error // if not nil, of everything
}

func (z *zone) LookupIPAddr(_ context.Context, name string) ([]net.IPAddr, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.err == nil && z.ip[name] == nil {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return z.ip[name], z.err
}

func (z *zone) LookupTXT(_ context.Context, name string) ([]string, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.txt[name], z.err
}

func (z *zone) set(change func()) {
	z.mu.Lock()
	defer z.mu.Unlock()
	change()
}

// watcher runs rounds by hand, and keeps what was found.
type watcher struct {
	*Names
	zone  *zone
	w     *watched
	peers map[peer.ID][]ma.Multiaddr
	lost  []peer.ID
}

func newWatcher(t *testing.T, c NamesConfig, names ...string) *watcher {
	t.Helper()
	x := &watcher{
		zone:  &zone{ip: make(map[string][]net.IPAddr), txt: make(map[string][]string)},
		w:     &watched{names: make(map[string]*name), told: make(map[peer.ID][]ma.Multiaddr)},
		peers: make(map[peer.ID][]ma.Multiaddr),
	}
	for _, n := range names {
		c.Names = append(c.Names, ma.StringCast(n))
	}
	if c.Allowed == nil {
		c.Allowed = everybody
	}
	if c.Connected == nil {
		c.Connected = func(peer.ID) bool { return false }
	}
	c.Resolver, c.Log = x.zone, testLog(t)
	c.Found = func(p peer.AddrInfo) { x.peers[p.ID] = p.Addrs }
	c.Lost = func(id peer.ID) {
		delete(x.peers, id)
		x.lost = append(x.lost, id)
	}
	var err error
	if x.Names, err = newNames(c); err != nil {
		t.Fatal(err)
	}
	return x
}

func (x *watcher) ids() []peer.ID {
	ids := []peer.ID{}
	for id := range x.peers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// at returns a name for the port that a host listens on, and its address.
func at(t testing.TB, h host.Host) (port string, ip net.IPAddr) {
	t.Helper()
	p, err := h.Addrs()[0].ValueForProtocol(ma.P_TCP)
	if err != nil {
		t.Fatal(err)
	}
	return p, net.IPAddr{IP: net.IPv4(127, 0, 0, 1)}
}

func sorted(ids ...peer.ID) []peer.ID {
	slices.Sort(ids)
	return ids
}

func psk(b byte) pnet.PSK { return bytes.Repeat([]byte{b}, 32) }

// A headless service: many addresses, ids learned, members come and go.
func TestNameWithManyNodes(t *testing.T) {
	key := psk(1)
	// All have one port, at several addresses, as pods have.
	on := func(ip, port string) host.Host {
		h := newHost(t, key)
		if err := h.Network().Listen(ma.StringCast("/ip4/" + ip + "/tcp/" + port)); err != nil {
			t.Fatal(err)
		}
		return h
	}
	a := on("127.0.0.2", "0")
	var port string
	for _, addr := range a.Network().ListenAddresses() {
		if strings.Contains(addr.String(), "127.0.0.2") {
			port, _ = addr.ValueForProtocol(ma.P_TCP)
		}
	}
	b, c, self := on("127.0.0.3", port), on("127.0.0.4", port), on("127.0.0.5", port)
	ip := func(last byte) net.IPAddr { return net.IPAddr{IP: net.IPv4(127, 0, 0, last)} }

	x := newWatcher(t, NamesConfig{Key: key, Self: self.ID()}, "/dns4/pods.example/tcp/"+port)
	x.round(t.Context(), x.w)
	if len(x.peers) > 0 {
		t.Errorf("a name that does not exist led to %v", x.peers)
	}
	x.zone.set(func() { x.zone.ip["pods.example"] = []net.IPAddr{ip(2), ip(3), ip(5), ip(99)} })
	x.round(t.Context(), x.w)
	if got := x.ids(); !slices.Equal(got, sorted(a.ID(), b.ID())) {
		t.Errorf("found %v, want a and b, and not ourselves", got)
	}
	if addr := x.peers[a.ID()]; len(addr) != 1 || addr[0].String() != "/ip4/127.0.0.2/tcp/"+port {
		t.Errorf("a is at %v", addr)
	}
	// The DNS fails: what it said before holds.
	x.zone.set(func() { x.zone.err = errors.New("server misbehaving") })
	x.round(t.Context(), x.w)
	if got := x.ids(); len(got) != 2 {
		t.Errorf("without DNS %v are left", got)
	}
	// One goes, one comes, and one is replaced by another at its address.
	x.zone.set(func() {
		x.zone.err = nil
		x.zone.ip["pods.example"] = []net.IPAddr{ip(3), ip(4), ip(5)}
	})
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	moved := on("127.0.0.3", port)
	x.round(t.Context(), x.w)
	if got := x.ids(); !slices.Equal(got, sorted(c.ID(), moved.ID())) {
		t.Errorf("found %v, want c and the one that moved in", got)
	}
	if lost := sorted(x.lost...); !slices.Equal(lost, sorted(a.ID(), b.ID())) {
		t.Errorf("lost %v, want a and b", lost)
	}
}

// Who has not the key, or another one, is not found, and learns nothing.
func TestNameWithStrangers(t *testing.T) {
	for name, h := range map[string]host.Host{"no key": newHost(t, nil), "another key": newHost(t, psk(2))} {
		port, ip := at(t, h)
		x := newWatcher(t, NamesConfig{Key: psk(1)}, "/dns/x.example/tcp/"+port)
		x.zone.ip["x.example"] = []net.IPAddr{ip}
		x.round(t.Context(), x.w)
		if len(x.peers) > 0 {
			t.Errorf("%s: found %v", name, x.peers)
		}
	}
}

// Without a key the list decides, and the probe shows nobody's identity.
func TestNameWithoutKey(t *testing.T) {
	listed, stranger := newHost(t, nil), newHost(t, nil)
	seen := make(chan peer.ID, 10)
	stranger.Network().Notify(&network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) { seen <- c.RemotePeer() }})
	p1, ip := at(t, listed)
	p2, _ := at(t, stranger)
	x := newWatcher(t, NamesConfig{Allowed: func(p peer.ID) bool { return p == listed.ID() }},
		"/dns4/x.example/tcp/"+p1, "/dns4/x.example/tcp/"+p2, "/ip4/127.0.0.1/tcp/"+p1)
	x.zone.ip["x.example"] = []net.IPAddr{ip}
	x.round(t.Context(), x.w)
	if got := x.ids(); !slices.Equal(got, []peer.ID{listed.ID()}) {
		t.Errorf("found %v, want the one that is listed", got)
	}
	select {
	case id := <-seen:
		t.Errorf("the stranger saw a connection of %s", id)
	default:
	}
}

// The records of a dnsaddr may say the id, and may lead to other names.
func TestDNSAddr(t *testing.T) {
	a, b := newHost(t, nil), newHost(t, nil)
	port, _ := at(t, b)
	x := newWatcher(t, NamesConfig{}, "/dnsaddr/example.com")
	x.zone.txt["_dnsaddr.example.com"] = []string{
		"dnsaddr=" + a.Addrs()[0].String() + "/p2p/" + a.ID().String(),
		"dnsaddr=/dnsaddr/more.example.com",
		"dnsaddr=/dnsaddr/example.com", // a loop
		"dnsaddr=nonsense", "other=text",
	}
	x.zone.txt["_dnsaddr.more.example.com"] = []string{"dnsaddr=/ip4/127.0.0.1/tcp/" + port}
	x.round(t.Context(), x.w)
	if got := x.ids(); !slices.Equal(got, sorted(a.ID(), b.ID())) {
		t.Errorf("found %v, want both", got)
	}
}

// A name with very many addresses is cut.
func TestNameWithTooManyAddresses(t *testing.T) {
	x := newWatcher(t, NamesConfig{}, "/dns4/x.example/tcp/1")
	for i := range 5000 {
		x.zone.ip["x.example"] = append(x.zone.ip["x.example"], net.IPAddr{IP: net.IPv4(127, 1, byte(i>>8), byte(i))})
	}
	got, err := x.resolve(t.Context(), x.NamesConfig.Names[0])
	if err != nil || len(got) != addrsPerName {
		t.Errorf("%d addresses, %v; want %d", len(got), err, addrsPerName)
	}
}

// Somebody answers and then says nothing, or nonsense.
func TestProbeOfWhatIsNoPeer(t *testing.T) {
	p, err := newProber(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, answer := range map[string]string{"nonsense": "HTTP/1.1 400 Bad Request\r\n\r\n", "huge length": "\xff\xff\xff\xff\x7f/multistream/1.0.0\n"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(answer)) // it may have gone already
			c.Close()
		}()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		if id, err := p.whoIs(t.Context(), ma.StringCast("/ip4/127.0.0.1/tcp/"+port)); err == nil {
			t.Errorf("%s: it is %s", name, id)
		}
		l.Close()
		<-done
	}
	// One that says nothing holds it up no longer than its context.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	go func() {
		_, err := p.whoIs(ctx, ma.StringCast("/ip4/127.0.0.1/tcp/"+port))
		done <- err
	}()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cancel()
	if err := <-done; err == nil {
		t.Error("no error")
	}
}

// The real loop: it starts at once, and ends when it is told to.
func TestStartNames(t *testing.T) {
	h := newHost(t, nil)
	port, _ := at(t, h)
	found := make(chan peer.ID, 1)
	n, err := StartNames(NamesConfig{
		Names: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/" + port)}, Resolver: &zone{},
		Allowed: everybody, Connected: func(peer.ID) bool { return false },
		Found: func(p peer.AddrInfo) { found <- p.ID }, Lost: func(peer.ID) {}, Log: testLog(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	if id := <-found; id != h.ID() {
		t.Errorf("found %s", id)
	}
	n.Close()
}
