package discovery

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/vishvananda/netlink"
)

// mdnsChild is set in the process that runs alone in a network.
const mdnsChild = "IPFS_STARGZ_MDNS_TEST"

// mDNS is multicast: the test runs in a network of its own, so that nobody else
// hears it.
func TestMDNS(t *testing.T) {
	if os.Getenv(mdnsChild) != "" {
		testMDNS(t)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestMDNS$", "-test.v")
	cmd.Env = append(os.Environ(), mdnsChild+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func testMDNS(t *testing.T) {
	const address = "10.88.0.1"
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "one"}, PeerName: "two"}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr(address + "/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"lo", "one", "two"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
	}
	listen := libp2p.ListenAddrStrings("/ip4/" + address + "/tcp/0")
	a, b, stranger := newHost(t, nil, listen), newHost(t, nil, listen), newHost(t, nil, listen)
	found := make(chan peer.AddrInfo, 100)
	start := func(c MDNSConfig) *MDNS {
		c.Service, c.Log = PrivateService, testLog(t)
		if c.Found == nil {
			c.Found = func(peer.AddrInfo) {}
		}
		m := StartMDNS(c)
		t.Cleanup(m.Close)
		return m
	}
	// The others are there first, so that their answers come together.
	start(MDNSConfig{Host: stranger, Allowed: everybody})
	start(MDNSConfig{Host: b, Allowed: everybody})
	start(MDNSConfig{
		Host: a, Allowed: func(p peer.ID) bool { return p != stranger.ID() },
		Found: func(p peer.AddrInfo) { found <- p },
	})
	p := <-found
	if p.ID != b.ID() {
		t.Fatalf("found %s, want %s", p.ID, b.ID())
	}
	if err := a.Connect(t.Context(), p); err != nil {
		t.Error(err)
	}
}

// What is found is filtered, whoever says it.
func TestMDNSOffersOnlyWhatIsOfUse(t *testing.T) {
	self, ok, stranger := newHost(t, nil), newHost(t, nil), newHost(t, nil)
	var got []peer.AddrInfo
	m := &MDNS{MDNSConfig: MDNSConfig{
		Host: self, Allowed: func(p peer.ID) bool { return p != stranger.ID() },
		Found: func(p peer.AddrInfo) { got = append(got, p) },
	}}
	many := peer.AddrInfo{ID: ok.ID()}
	for range 1000 {
		many.Addrs = append(many.Addrs, ok.Addrs()[0])
	}
	for _, p := range []peer.AddrInfo{
		{ID: self.ID(), Addrs: self.Addrs()}, {ID: stranger.ID(), Addrs: stranger.Addrs()}, {ID: ok.ID()}, many,
	} {
		m.HandlePeerFound(p)
	}
	if len(got) != 1 || got[0].ID != ok.ID() || len(got[0].Addrs) != maxMDNSAddrs {
		t.Errorf("offered %v", got)
	}
}
