package capture

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var own = net.HardwareAddr{2, 0, 0, 0, 0, 1}

// frames are whole frames by what they are.
var frames = map[string]string{
	"TCP data sent":  "020000000002 020000000001 0800  4500003000004000 4006 0000 0a4d0001 0a4d0002  0fa10050 00000001 00000002 5018ffff00000000  6162636465666768",
	"TCP SYN got":    "020000000001 020000000002 0800  4500002800004000 4006 0000 0a4d0002 0a4d0001  00500fa1 00000001 00000000 5002ffff00000000",
	"TCP RST sent":   "020000000002 020000000001 0800  4500002800004000 4006 0000 0a4d0001 0a4d0002  0fa10050 00000001 00000000 5004ffff00000000",
	"UDP sent":       "01005e0000fb 020000000001 0800  4500002000004000 0111 0000 0a4d0001 e00000fb  14e914e9 000c0000 61626364",
	"ARP sent":       "ffffffffffff 020000000001 0806  0001 0800 06 04 0001 020000000001 0a4d0001 000000000000 0a4d0003",
	"ICMPv6 sent":    "333300000016 020000000001 86dd  60000000 0008 3a ff fe800000000000000000000000000001 ff020000000000000000000000000002 8500000000000000",
	"IPv4, cut":      "020000000002 020000000001 0800  4500",
	"too short":      "0200",
	"TCP of IPv6":    "020000000001 020000000002 86dd  60000000 0016 06 40 fe800000000000000000000000000002 fe800000000000000000000000000001 00500fa1 00000001 00000002 5010ffff00000000 6162",
	"header too big": "020000000002 020000000001 0800  4f00001400004000 4006 0000 0a4d0001 0a4d0002",
}

func frame(t testing.TB, name string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(frames[name], " ", ""))
	if err != nil {
		t.Fatal(name, err)
	}
	return b
}

func TestParse(t *testing.T) {
	v4 := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	for _, tt := range []struct {
		name  string
		flow  Flow
		count Count
	}{
		{"TCP data sent", Flow{true, etherIPv4, protoTCP, v4("10.77.0.2"), 4001, 80}, Count{1, 62, 1, 8, 0, 0}},
		{"TCP SYN got", Flow{false, etherIPv4, protoTCP, v4("10.77.0.2"), 4001, 80}, Count{1, 54, 0, 0, 1, 0}},
		{"TCP RST sent", Flow{true, etherIPv4, protoTCP, v4("10.77.0.2"), 4001, 80}, Count{1, 54, 0, 0, 0, 1}},
		{"UDP sent", Flow{true, etherIPv4, protoUDP, v4("224.0.0.251"), 5353, 5353}, Count{1, 46, 1, 4, 0, 0}},
		{"ARP sent", Flow{true, etherARP, 0, v4("10.77.0.3"), 0, 0}, Count{1, 42, 0, 0, 0, 0}},
		{"ICMPv6 sent", Flow{true, etherIPv6, 58, v4("ff02::2"), 0, 0}, Count{1, 62, 0, 0, 0, 0}},
		{"IPv4, cut", Flow{Sent: true, Ether: etherIPv4}, Count{Packets: 1, Bytes: 16}},
		{"TCP of IPv6", Flow{false, etherIPv6, protoTCP, v4("fe80::2"), 4001, 80}, Count{1, 76, 1, 2, 0, 0}},
		{"header too big", Flow{Sent: true, Ether: etherIPv4, Protocol: protoTCP, Peer: v4("10.77.0.2")}, Count{Packets: 1, Bytes: 34}},
	} {
		flow, count, ok := parse(own, frame(t, tt.name))
		if !ok || flow != tt.flow || count != tt.count {
			t.Errorf("%s: %+v %+v %v, want %+v %+v", tt.name, flow, count, ok, tt.flow, tt.count)
		}
	}
	if _, _, ok := parse(own, frame(t, "too short")); ok {
		t.Error("two bytes were taken for a frame")
	}
}

// FuzzParse reads any frame without harm, whole or cut.
func FuzzParse(f *testing.F) {
	for name := range frames {
		f.Add(frame(f, name))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		flow, count, ok := parse(own, b)
		if ok && (count.Packets != 1 || count.Bytes < 0 || count.PayloadBytes < 0) {
			t.Errorf("%+v", count)
		}
		if ok && flow.Sent != bytes.Equal(b[6:12], own) {
			t.Errorf("the frame %x was sent: %v", b, flow.Sent)
		}
		if flow.String() == "" {
			t.Error("no text")
		}
	})
}

// TestCapture counts a conversation over a real link.
func TestCapture(t *testing.T) {
	n, err := testnet.New(2)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	a, b := n.Nodes[0], n.Nodes[1]
	c, err := Start(a)
	if err != nil {
		t.Fatal(err)
	}
	l, err := b.Listen(0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const size = 100_000
	served := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			served <- err
			return
		}
		_, err = conn.Write(make([]byte, size))
		served <- errors.Join(err, conn.Close())
	}()
	var conn net.Conn
	if err := a.Do(func() (err error) {
		conn, err = net.Dial("tcp", l.Addr().String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	got, err := io.Copy(io.Discard, conn)
	if err := errors.Join(err, conn.Close(), <-served); err != nil || got != size {
		t.Fatalf("%d bytes: %v", got, err)
	}
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	counted := func(sent bool) (sum Count) {
		for f, count := range c.Flows() {
			if f.TCP() && f.Sent == sent && f.Peer == b.Addr && f.PeerPort == port {
				sum.add(count)
			}
		}
		return sum
	}
	for end := time.Now().Add(time.Minute); counted(false).PayloadBytes < size && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	// A machine that is busy makes TCP send some of it twice.
	if got := counted(false); got.PayloadBytes < size || got.PayloadBytes > 2*size || got.Opened != 0 {
		t.Errorf("counted %+v of a transfer of %d bytes", got, size)
	}
	if got := counted(true); got.PayloadBytes != 0 || got.Opened != 1 {
		t.Errorf("counted %+v of who dialed", got)
	}
	if n, err := c.Dropped(); n != 0 || err != nil {
		t.Errorf("%d frames were dropped: %v", n, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if len(c.Flows()) == 0 {
		t.Error("the counts are gone with the capture")
	}
}

// TestRouteAndIPv6 looks at what [testnet] offers for captures: what is for
// outside goes to the default route, and IPv6 is quiet.
func TestRouteAndIPv6(t *testing.T) {
	n, err := testnet.New(2)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	a, b := n.Nodes[0], n.Nodes[1]
	if err := errors.Join(a.DisableIPv6(), a.SetDefaultRoute(b.Addr)); err != nil {
		t.Fatal(err)
	}
	c, err := Start(b)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := a.Do(func() error {
		conn, err := net.Dial("udp", "192.0.2.1:9") // an address for documentation
		if err != nil {
			return err
		}
		_, err = conn.Write(binary.BigEndian.AppendUint32(nil, 1))
		return errors.Join(err, conn.Close())
	}); err != nil {
		t.Fatal(err)
	}
	// Received by b, of which a's address is the peer.
	want := Flow{Ether: etherIPv4, Protocol: protoUDP, Peer: a.Addr, PeerPort: 0, LocalPort: 9}
	seen := func() bool {
		for f := range c.Flows() {
			f.PeerPort = 0
			if f == want {
				return true
			}
		}
		return false
	}
	for end := time.Now().Add(time.Minute); !seen() && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if !seen() {
		t.Errorf("the default route did not get it: %v", c.Flows())
	}
}
