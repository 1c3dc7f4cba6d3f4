package capture

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

// The kinds of frames that are told apart.
const (
	etherIPv4 = 0x0800
	etherARP  = 0x0806
	etherIPv6 = 0x86dd

	protoTCP = 6
	protoUDP = 17

	tcpFIN, tcpSYN, tcpRST, tcpACK = 0x01, 0x02, 0x04, 0x10
)

// Flow is what packets are counted by.
type Flow struct {
	Sent     bool // by this link; else received
	Ether    uint16
	Protocol uint8 // of IP
	// Peer is the other side's address, or what an ARP packet is about.
	Peer                netip.Addr
	LocalPort, PeerPort uint16 // of TCP and UDP
}

// String is one line for people.
func (f Flow) String() string {
	way := "from"
	if f.Sent {
		way = "to"
	}
	var kind string
	switch {
	case f.Ether == etherARP:
		kind = "ARP"
	case f.Protocol == protoTCP:
		kind = "TCP"
	case f.Protocol == protoUDP:
		kind = "UDP"
	default:
		kind = fmt.Sprintf("ethertype %#04x protocol %d", f.Ether, f.Protocol)
	}
	return fmt.Sprintf("%s %s %v port %d (here %d)", kind, way, f.Peer, f.PeerPort, f.LocalPort)
}

// TCP tells whether the flow is of TCP.
func (f Flow) TCP() bool { return f.Ether != etherARP && f.Protocol == protoTCP }

// ARP tells whether the flow asks for, or tells, the link address of Peer.
func (f Flow) ARP() bool { return f.Ether == etherARP }

// Count is what went by in one flow.
type Count struct {
	Packets, Bytes int64 // with all headers
	// PayloadPackets carry data of TCP or UDP, PayloadBytes in all.
	PayloadPackets, PayloadBytes int64
	// Opened are the packets by which one side dials the other, Ended those
	// by which it ends a connection, of TCP.
	Opened, Ended int64
}

func (c *Count) add(d Count) {
	c.Packets += d.Packets
	c.Bytes += d.Bytes
	c.PayloadPackets += d.PayloadPackets
	c.PayloadBytes += d.PayloadBytes
	c.Opened += d.Opened
	c.Ended += d.Ended
}

// parse reads the headers of a frame that went over the link with address own.
// What it does not know it counts with what it does; frame may be cut after the
// headers.
func parse(own net.HardwareAddr, frame []byte) (f Flow, c Count, ok bool) {
	const header = 14
	if len(frame) < header {
		return f, c, false
	}
	f.Sent = string(frame[6:12]) == string(own)
	f.Ether = binary.BigEndian.Uint16(frame[12:])
	c.Packets = 1
	p := frame[header:]
	switch {
	case f.Ether == etherIPv4 && len(p) >= 20:
		size, total := int(p[0]&0xf)*4, int(binary.BigEndian.Uint16(p[2:]))
		c.Bytes = header + int64(total)
		f.Protocol = p[9]
		f.Peer = peer(f.Sent, p[12:16], p[16:20])
		if size >= 20 && size <= len(p) && size <= total {
			transport(&f, &c, p[size:], total-size)
		}
	case f.Ether == etherIPv6 && len(p) >= 40:
		payload := int(binary.BigEndian.Uint16(p[4:]))
		c.Bytes = header + 40 + int64(payload)
		f.Protocol = p[6]
		f.Peer = peer(f.Sent, p[8:24], p[24:40])
		transport(&f, &c, p[40:], payload)
	case f.Ether == etherARP && len(p) >= 28:
		c.Bytes = header + 28
		f.Peer = peer(f.Sent, p[14:18], p[24:28])
	default:
		c.Bytes = int64(len(frame))
	}
	return f, c, true
}

func peer(sent bool, src, dst []byte) netip.Addr {
	if sent {
		src = dst
	}
	a, _ := netip.AddrFromSlice(src)
	return a
}

// transport reads the header of TCP or UDP at p; size is that of it and its
// data.
func transport(f *Flow, c *Count, p []byte, size int) {
	header := 8
	switch {
	case f.Protocol == protoTCP && len(p) >= 20:
		header = int(p[12]>>4) * 4
		if flags := p[13]; flags&(tcpSYN|tcpACK) == tcpSYN {
			c.Opened = 1
		} else if flags&(tcpFIN|tcpRST) != 0 {
			c.Ended = 1
		}
	case f.Protocol == protoUDP && len(p) >= 8:
	default:
		return
	}
	src, dst := binary.BigEndian.Uint16(p), binary.BigEndian.Uint16(p[2:])
	if f.Sent {
		f.LocalPort, f.PeerPort = src, dst
	} else {
		f.LocalPort, f.PeerPort = dst, src
	}
	if size > header {
		c.PayloadPackets, c.PayloadBytes = 1, int64(size-header)
	}
}
