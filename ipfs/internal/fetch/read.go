package fetch

import (
	"bytes"
	"io"
	"net/http"
	"strconv"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// ReadBlock reads a block from a body to its end, but no more than one byte
// over [ipfs.MaxBlockSize]. The length is what a header says of it, unverified,
// and only saves copies.
func ReadBlock(body io.Reader, length string) ([]byte, error) {
	n, err := strconv.Atoi(length)
	if err != nil || n < 0 || n > ipfs.MaxBlockSize {
		n = 0
	}
	// A Buffer wants room for one more read when it looks for the end.
	buf := bytes.NewBuffer(make([]byte, 0, n+bytes.MinRead))
	_, err = buf.ReadFrom(io.LimitReader(body, ipfs.MaxBlockSize+1))
	return buf.Bytes(), err
}

// maxDrained is what it may cost to use a connection again, in bytes.
const maxDrained = 64 << 10

// Drain reads what is left of an answer, so that its connection is used again,
// if that is little.
func Drain(resp *http.Response) {
	if resp.ContentLength <= maxDrained {
		_, _ = io.CopyN(io.Discard, resp.Body, maxDrained)
	}
}
