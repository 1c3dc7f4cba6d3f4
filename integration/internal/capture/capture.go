// Package capture counts what goes over a namespace's link, packet by packet:
// by whom it comes or to whom it goes, and how much of it is data. Where
// [testnet.Namespace.Traffic] says how much there was, this says what.
package capture

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testnet"
)

const (
	headerBytes = 160     // of a frame that are looked at
	bufferBytes = 8 << 20 // of frames that wait for us in the kernel
)

// Capture counts until it is closed. Use [Start].
type Capture struct {
	own  net.HardwareAddr
	file *os.File
	done chan error

	mu    sync.Mutex
	flows map[Flow]Count
}

// Start counts all frames on the link of ns from now on.
func Start(ns *testnet.Namespace) (*Capture, error) {
	c := &Capture{done: make(chan error, 1), flows: make(map[Flow]Count)}
	if err := ns.Do(c.open); err != nil {
		return nil, fmt.Errorf("capture on the link of %s: %w", ns.Addr, err)
	}
	go func() { c.done <- c.read() }()
	return c, nil
}

// open makes the socket, on a thread that is in the namespace.
func (c *Capture) open() error {
	link, err := net.InterfaceByName(testnet.LinkName)
	if err != nil {
		return err
	}
	c.own = link.HardwareAddr
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in the network's order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	c.file = os.NewFile(uintptr(fd), "packet socket")
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bufferBytes),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}),
	)
	if err != nil {
		return errors.Join(err, c.file.Close())
	}
	return nil
}

func (c *Capture) read() error {
	buf := make([]byte, headerBytes)
	for {
		n, err := c.file.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		f, count, ok := parse(c.own, buf[:n])
		if !ok {
			continue
		}
		c.mu.Lock()
		sum := c.flows[f]
		sum.add(count)
		c.flows[f] = sum
		c.mu.Unlock()
	}
}

// Flows are the counts so far.
func (c *Capture) Flows() map[Flow]Count {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.flows)
}

// Dropped is how many frames went by uncounted since the last time it was
// asked, because there were too many at once.
func (c *Capture) Dropped() (int, error) {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var stats *unix.TpacketStats
	var statsErr error
	if err := raw.Control(func(fd uintptr) {
		stats, statsErr = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); err != nil || statsErr != nil {
		return 0, errors.Join(err, statsErr)
	}
	return int(stats.Drops), nil
}

// Close ends the counting; the counts stay.
func (c *Capture) Close() error { return errors.Join(c.file.Close(), <-c.done) }
