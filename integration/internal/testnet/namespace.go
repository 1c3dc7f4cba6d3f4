package testnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is one network namespace. It lives as long as it is open, or a
// process runs in it; it has no name in the file system that could be left
// behind.
type Namespace struct {
	// Addr is the address of its only link; invalid in the hub.
	Addr netip.Addr

	file   *os.File
	handle *netlink.Handle
}

func newNamespace() (ns *Namespace, err error) {
	ns = &Namespace{}
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		ns.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("new network namespace: %w", err)
	}
	ns.handle, err = netlink.NewHandleAt(netns.NsHandle(ns.file.Fd()))
	if err != nil {
		return nil, errors.Join(err, ns.file.Close())
	}
	lo, err := ns.handle.LinkByName("lo")
	if err == nil {
		err = ns.handle.LinkSetUp(lo)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("loopback: %w", err), ns.close())
	}
	return ns, nil
}

func (ns *Namespace) close() error {
	ns.handle.Close()
	return ns.file.Close()
}

// Path is where another process, as nsenter(1), finds the namespace while it
// is open.
func (ns *Namespace) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.file.Fd())
}

// Do runs f on a thread that is in the namespace. Sockets that f makes stay in
// it; goroutines that f starts are outside.
func (ns *Namespace) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("setns: %w", err)
		}
		return f()
	})
}

// Start starts cmd in the namespace. Mounts are as outside of it, unlike with
// `ip netns exec`.
func (ns *Namespace) Start(cmd *exec.Cmd) error { return ns.Do(cmd.Start) }

// Listen opens a TCP port on the namespace's address; port 0 takes any.
func (ns *Namespace) Listen(port uint16) (l net.Listener, err error) {
	err = ns.Do(func() error {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(ns.Addr, port)))
		return err
	})
	return l, err
}

// Dial opens a TCP connection from the namespace.
func (ns *Namespace) Dial(ctx context.Context, to netip.AddrPort) (c net.Conn, err error) {
	err = ns.Do(func() error {
		// With a literal address the socket is made on this thread.
		c, err = (&net.Dialer{}).DialContext(ctx, "tcp", to.String())
		return err
	})
	return c, err
}

// SetDefaultRoute sends what is for no node of the network to the node with
// address via.
func (ns *Namespace) SetDefaultRoute(via netip.Addr) error {
	link, err := ns.handle.LinkByName(LinkName)
	if err != nil {
		return err
	}
	if err := ns.handle.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("default route over %s: %w", via, err)
	}
	return nil
}

// DisableIPv6 takes IPv6 off the namespace's link, and with it what the kernel
// sends for IPv6 of its own accord.
func (ns *Namespace) DisableIPv6() error {
	return ns.Do(func() error {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+LinkName+"/disable_ipv6", []byte("1"), 0)
		if errors.Is(err, os.ErrNotExist) {
			return nil // the kernel has none
		}
		return err
	})
}

// Traffic is what went over a link, in bytes with all headers.
type Traffic struct{ Received, Sent int64 }

// Sub is the traffic since an earlier reading.
func (t Traffic) Sub(earlier Traffic) Traffic {
	return Traffic{Received: t.Received - earlier.Received, Sent: t.Sent - earlier.Sent}
}

// Traffic reads the counters of the namespace's link.
func (ns *Namespace) Traffic() (Traffic, error) {
	link, err := ns.handle.LinkByName(LinkName)
	if err != nil {
		return Traffic{}, err
	}
	s := link.Attrs().Statistics
	return Traffic{Received: int64(s.RxBytes), Sent: int64(s.TxBytes)}, nil
}

// onThread runs f on a thread of its own and puts the thread's network
// namespace back; a thread that cannot be put back ends.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		before, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- err
			return
		}
		defer before.Close()
		err = f()
		if back := unix.Setns(int(before.Fd()), unix.CLONE_NEWNET); back != nil {
			done <- errors.Join(err, fmt.Errorf("leaving the namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}
