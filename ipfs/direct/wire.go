package direct

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// The messages of haveProtocol. Each is its length (uvarint), its kind (a
// byte) and the CID of a file's root, with its length (uvarint) before it.
// kindHave and kindGone go on with runs of parts, each the distance from the
// end of the run before, and how many parts it has beyond the first (uvarints).
const (
	kindWatch   = 1 // tell me, from now on, which parts of the file you hold
	kindUnwatch = 2 // no more
	kindHave    = 3 // I hold these too. Of no parts: it is what I hold that you know
	kindGone    = 4 // I hold these no longer
)

// Limits on what a peer may send.
const (
	maxMessage = 64 << 10
	maxParts   = 1 << 20 // of a file: a round number at the limit of package ipfs
	maxSpans   = 8 << 10 // in one message of ours: with 5 bytes each it is within maxMessage
	maxWatched = 1024    // files, by one peer at once
)

// errWire is wrapped by errors about messages that break the rules.
var errWire = errors.New("malformed message")

// message is one message.
type message struct {
	kind  byte
	root  cid.Cid
	spans []span // rising, apart
}

// append encodes m.
func (m message) append(b []byte) []byte {
	body := []byte{m.kind}
	body = binary.AppendUvarint(body, uint64(m.root.ByteLen()))
	body = append(body, m.root.KeyString()...)
	next := 0
	for _, s := range m.spans {
		body = binary.AppendUvarint(body, uint64(s.first-next))
		body = binary.AppendUvarint(body, uint64(s.last-s.first))
		next = s.last + 1
	}
	b = binary.AppendUvarint(b, uint64(len(body)))
	return append(b, body...)
}

// readMessage reads one message. The error is that of r, [io.EOF] between two
// messages, or wraps errWire.
func readMessage(r *bufio.Reader) (message, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return message{}, err
	}
	if n == 0 || n > maxMessage {
		return message{}, fmt.Errorf("direct: %w: %d bytes, at most %d", errWire, n, maxMessage)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return message{}, err
	}
	return parseMessage(body)
}

func parseMessage(body []byte) (message, error) {
	m := message{kind: body[0]}
	n, rest, err := uvarint(body[1:])
	if err != nil {
		return m, err
	}
	if n > len(rest) {
		return m, fmt.Errorf("direct: %w: a CID of %d bytes where %d follow", errWire, n, len(rest))
	}
	if m.root, err = cid.Cast(rest[:n]); err != nil {
		return m, fmt.Errorf("direct: %w: %w", errWire, err)
	}
	if err := ipfs.CheckCID(m.root); err != nil {
		return m, fmt.Errorf("direct: %w: %w", errWire, err)
	}
	rest = rest[n:]
	switch m.kind {
	case kindWatch, kindUnwatch:
		if len(rest) > 0 {
			return m, fmt.Errorf("direct: %w: %d bytes too many", errWire, len(rest))
		}
	case kindHave, kindGone:
		m.spans, err = parseSpans(rest)
	default:
		err = fmt.Errorf("direct: %w: of unknown kind %d", errWire, m.kind)
	}
	return m, err
}

func parseSpans(b []byte) ([]span, error) {
	var spans []span
	next := 0
	for len(b) > 0 {
		gap, rest, err := uvarint(b)
		if err != nil {
			return nil, err
		}
		more, rest, err := uvarint(rest)
		if err != nil {
			return nil, err
		}
		s := span{next + gap, next + gap + more}
		if s.last >= maxParts {
			return nil, fmt.Errorf("direct: %w: part %d of a file, which has at most %d", errWire, s.last, maxParts)
		}
		spans = append(spans, s)
		b, next = rest, s.last+1
	}
	return spans, nil
}

// uvarint splits a number off b. One over maxParts is refused, so that none
// added to another overflows.
func uvarint(b []byte) (int, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, fmt.Errorf("direct: %w: it ends within a number", errWire)
	}
	if v > maxParts {
		return 0, nil, fmt.Errorf("direct: %w: the number %d is over %d", errWire, v, maxParts)
	}
	return int(v), b[n:], nil
}
