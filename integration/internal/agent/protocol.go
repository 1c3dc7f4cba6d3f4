// Package agent runs IPFS nodes in processes of their own, in the network
// namespaces of a testbed, and has them do what a benchmark measures: hold
// content, fetch it, say how long that took and what it cost.
//
// [Start] starts the running program again with the argument [Argument], which
// has to call [Serve]; the two talk in lines of JSON over standard input and
// output. An agent ends with its input, so none is left when a benchmark dies.
//
// The nodes are those of package ipfs/node, by its public API alone, and as
// reference boxo's plain bitswap over libp2p, as it comes or tuned like ours.
package agent

import (
	"encoding/json"
	"time"
)

// Argument is the first argument of a program that is started as an agent.
const Argument = "agent"

// Kind is what a peer of an agent is made of.
type Kind string

// The kinds of peers.
const (
	Node         Kind = "node"          // ours
	Bitswap      Kind = "bitswap"       // plain bitswap with boxo's defaults
	BitswapTuned Kind = "bitswap-tuned" // the same, with large messages and many at once
)

// Identify gives the peer id of a Node with this directory, and makes it if
// need be: so that others have it in their lists before the node runs.
type Identify struct{ Dir string }

// Identified is the answer.
type Identified struct{ ID string }

// Open starts a peer. Listen, Announce, Peers and FetchTimeout are as in
// node.Config; plain bitswap connects to Peers at once and ignores the others.
type Open struct {
	Kind         Kind
	Dir          string
	Listen       []string
	Announce     []string
	Peers        []string
	FetchTimeout time.Duration
}

// Opened is the answer; Peer is the peer's number within the agent, by which
// the other requests name it.
type Opened struct {
	Peer  int
	Addrs []string // multiaddrs with /p2p/ID
}

// Connect waits until a peer has so many connected ones.
type Connect struct{ Peer, Count int }

// Content is a file of pseudo-random bytes. Leaves all have Leaf bytes, but
// for the last one, and one root links to all of them.
type Content struct {
	Seed uint64
	Size int64 // bytes
	Leaf int64 // bytes
}

// Seed gives a peer content to hold: all of it, or with Of > 0 the root and of
// the leaves those with (index + k·7) mod Of = Nth for any k < Copies, so that
// of Of peers each leaf is with Copies.
type Seed struct {
	Peer            int
	Content         Content
	Nth, Of, Copies int
}

// Seeded is the answer.
type Seeded struct{ Root string }

// Mode is how content is fetched.
type Mode string

// The modes of fetching.
const (
	// Bulk is one Get of all leaves, that nobody waits for.
	Bulk Mode = "bulk"
	// Range is one ReadAt.
	Range Mode = "range"
	// Each is one Get after another, each of one leaf.
	Each Mode = "each"
)

// Fetch has a peer fetch leaves of a file. The file's root is fetched before,
// within the time that is measured, unless the peer has had it in a Fetch
// before; with N = 0 it is all that is fetched.
type Fetch struct {
	Peer     int
	Root     string
	Size     int64 // of the file, bytes
	Mode     Mode
	First, N int  // leaves; N < 0 is all from First on
	Progress bool // report while it goes on
}

// Fetched is the answer. That blocks could not be had is no error: Missing
// says how many, and Unavailable why.
type Fetched struct {
	Took        time.Duration
	Each        []time.Duration // by Get, in mode Each
	Bytes       int64
	Leaves      Bits // of the whole file, that were handed over
	Missing     int
	Unavailable string
	// HeapBefore and HeapPeak are bytes in use by the agent's heap, garbage
	// aside at first, not later.
	HeapBefore, HeapPeak int64
}

// Progress is what a Fetch reports while it goes on.
type Progress struct{ Leaves Bits }

// Verify reads all of a file and compares it with what it should be.
type Verify struct {
	Peer    int
	Root    string
	Content Content
}

// Usage asks what the agent's process has used up.
type Usage struct{}

// Used is the answer.
type Used struct{ CPU time.Duration }

// request and reply are the lines.
type request struct {
	Do   string          `json:"do"`
	Args json.RawMessage `json:"args"`
}

type reply struct {
	Progress *Progress       `json:"progress,omitempty"` // not the answer yet
	Result   json.RawMessage `json:"result,omitempty"`
	Error    string          `json:"error,omitempty"`
}

// Bits is a set of leaves, by index.
type Bits []byte

// NewBits returns an empty set of n.
func NewBits(n int) Bits { return make(Bits, (n+7)/8) }

// Set puts i in.
func (b Bits) Set(i int) { b[i/8] |= 1 << (i % 8) }

// Count is the number of leaves in the set.
func (b Bits) Count() (n int) {
	for _, x := range b {
		for ; x > 0; x &= x - 1 {
			n++
		}
	}
	return n
}

// Join adds the leaves of another set, which may be of a larger file.
func (b Bits) Join(other Bits) Bits {
	for len(b) < len(other) {
		b = append(b, 0)
	}
	for i, x := range other {
		b[i] |= x
	}
	return b
}
