package ipfs

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
)

var (
	// ErrBadCID is returned for a CID that is undefined or whose hash
	// function is unknown, too weak or of the wrong length.
	ErrBadCID = errors.New("CID cannot be verified")
	// ErrBadBlock is returned for data that does not match its CID.
	ErrBadBlock = errors.New("block does not match its CID")
	// ErrTooLarge is returned for a block over [MaxBlockSize] and for a file
	// over the size its reader allows.
	ErrTooLarge = errors.New("too large")
	// ErrNotFile is returned when a CID names something that is valid but not
	// a UnixFS file (a directory, a symlink, another codec).
	ErrNotFile = errors.New("not a UnixFS file")
	// ErrMalformed is returned for a node or a tree of nodes that breaks the
	// rules of dag-pb or UnixFS, or a limit of this package.
	ErrMalformed = errors.New("malformed UnixFS file")
)

// UnavailableError tells that blocks could not be had from anyone in the
// bounded time of the [Blocks] that was asked.
type UnavailableError struct {
	CIDs  []cid.Cid     // the blocks that are missing; never empty
	Asked []string      // whom: peer ids, or the address of a daemon; may be empty
	After time.Duration // time without progress; 0: it was answered at once
	Hint  string        // what to do next
	Err   error         // the cause, where there is more to say; may be nil
}

// maxNamed is how many CIDs or peers an error's text names.
const maxNamed = 3

// Error names the CIDs, whom was asked, and the next step, on one line.
func (e *UnavailableError) Error() string {
	var b strings.Builder
	b.WriteString("ipfs: unavailable: ")
	named(&b, len(e.CIDs), func(i int) string { return e.CIDs[i].String() })
	if e.After > 0 {
		fmt.Fprintf(&b, ": nothing arrived for %v", e.After)
	}
	if len(e.Asked) == 0 {
		b.WriteString(": no peer is connected")
	} else {
		b.WriteString(": asked ")
		named(&b, len(e.Asked), func(i int) string { return e.Asked[i] })
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *UnavailableError) Unwrap() error { return e.Err }

// named writes the first few of n names, and how many more there are.
func named(b *strings.Builder, n int, name func(int) string) {
	for i := range min(n, maxNamed) {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(name(i))
	}
	if n > maxNamed {
		fmt.Fprintf(b, " and %d more", n-maxNamed)
	}
}
