// Package testnet makes a small network of namespaces: nodes on one switch,
// each by a link of its own that has a rate, counts its bytes, and can be cut.
//
// Nothing of it has a name outside of the namespaces, so that several networks
// and what is left of a broken run do not meet, and it is gone with the last
// process that uses it.
package testnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// LinkName is the name of a node's link to the switch.
const LinkName = "eth0"

// maxNodes fit the network's addresses, 10.77.0.0/24.
const maxNodes = 250

// Net is a network of nodes on a switch. The switch is in a namespace of its
// own, the hub.
type Net struct {
	// Nodes are the namespaces of the nodes: 10.77.0.1, 10.77.0.2, …
	Nodes []*Namespace

	hub   *Namespace
	ports []netlink.Link // of the switch, by node
}

// New makes a network of n nodes, with links that are not shaped.
func New(n int) (_ *Net, err error) {
	if n < 1 || n > maxNodes {
		return nil, fmt.Errorf("a network of %d nodes: want 1 to %d", n, maxNodes)
	}
	t := &Net{}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	if t.hub, err = newNamespace(); err != nil {
		return nil, err
	}
	bridge := &netlink.Bridge{LinkAttrs: attrs("switch")}
	if err := t.hub.handle.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	if err := t.hub.handle.LinkSetUp(bridge); err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	for i := range n {
		if err := t.addNode(i, bridge); err != nil {
			return nil, fmt.Errorf("node %d: %w", i, err)
		}
	}
	return t, nil
}

func attrs(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

func (t *Net) addNode(i int, bridge netlink.Link) error {
	ns, err := newNamespace()
	if err != nil {
		return err
	}
	t.Nodes = append(t.Nodes, ns)
	ns.Addr = netip.AddrFrom4([4]byte{10, 77, 0, byte(i + 1)})

	port := &netlink.Veth{
		LinkAttrs:     attrs(fmt.Sprintf("port%d", i)),
		PeerName:      LinkName,
		PeerNamespace: netlink.NsFd(ns.file.Fd()),
	}
	if err := t.hub.handle.LinkAdd(port); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	if err := t.hub.handle.LinkSetMaster(port, bridge); err != nil {
		return fmt.Errorf("veth into the switch: %w", err)
	}
	if err := t.hub.handle.LinkSetUp(port); err != nil {
		return err
	}
	t.ports = append(t.ports, port)

	link, err := ns.handle.LinkByName(LinkName)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: ns.Addr.AsSlice(), Mask: net.CIDRMask(24, 32)}}
	if err := ns.handle.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("address %s: %w", ns.Addr, err)
	}
	return ns.handle.LinkSetUp(link)
}

// SetRate shapes every link to so many bits a second, in each direction on its
// own; 0 takes the shaping away.
func (t *Net) SetRate(bitsPerSecond int64) error {
	for i, ns := range t.Nodes {
		link, err := ns.handle.LinkByName(LinkName)
		if err != nil {
			return err
		}
		if err := errors.Join(shape(ns, link, bitsPerSecond), shape(t.hub, t.ports[i], bitsPerSecond)); err != nil {
			return fmt.Errorf("shaping the link of node %d: %w", i, err)
		}
	}
	return nil
}

// shape sets what link may send, by a token bucket of 5 ms and a queue of
// 25 ms.
func shape(ns *Namespace, link netlink.Link, bitsPerSecond int64) error {
	rate := uint64(bitsPerSecond / 8)
	bucket := max(rate/200, 16<<10)
	tbf := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate,
		Limit:      uint32(max(rate/40, 64<<10) + bucket),
	}
	if rate > 0 {
		// The kernel wants the bucket as the time in which it fills.
		microseconds := float64(bucket) * netlink.TIME_UNITS_PER_SEC / float64(rate)
		tbf.Buffer = uint32(microseconds * netlink.TickInUsec())
		return ns.handle.QdiscReplace(tbf)
	}
	list, err := ns.handle.QdiscList(link)
	if err != nil {
		return err
	}
	for _, q := range list {
		if q.Type() == tbf.Type() {
			return ns.handle.QdiscDel(q)
		}
	}
	return nil
}

// Cut takes a node off the switch, as if its cable were pulled, or puts it
// back.
func (t *Net) Cut(node int, cut bool) error {
	if cut {
		return t.hub.handle.LinkSetDown(t.ports[node])
	}
	return t.hub.handle.LinkSetUp(t.ports[node])
}

// Close ends the network. A namespace in which a process still runs ends with
// that process.
func (t *Net) Close() error {
	var errs []error
	for _, ns := range append(t.Nodes, t.hub) {
		if ns != nil {
			errs = append(errs, ns.close())
		}
	}
	t.Nodes, t.hub = nil, nil
	return errors.Join(errs...)
}
