package estargz

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"
	digest "github.com/opencontainers/go-digest"
)

// compression is gzip for estargz.Build. Against the library's own it writes a
// TOC that keeps what that one's loses: the nanoseconds of times, and names in
// bytes that JSON cannot hold.
type compression struct {
	*estargz.GzipDecompressor // what Build needs it for is replaced below
	level                     int
	times                     map[string]time.Time
	writers                   sync.Pool // of *gzip.Writer: a layer needs one for each file
}

func newCompression(level int, times map[string]time.Time) *compression {
	return &compression{level: level, times: times}
}

// Reader is used by Build to find the DiffID of what it made.
func (c *compression) Reader(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }

// Writer starts a gzip member.
func (c *compression) Writer(w io.Writer) (estargz.WriteFlushCloser, error) {
	if zw, _ := c.writers.Get().(*gzip.Writer); zw != nil {
		zw.Reset(w)
		return &member{zw, c}, nil
	}
	zw, err := gzip.NewWriterLevel(w, c.level)
	if err != nil {
		return nil, err
	}
	return &member{zw, c}, nil
}

// member is a gzip member that is written.
type member struct {
	*gzip.Writer
	c *compression
}

func (m *member) Close() error {
	err := m.Writer.Close()
	m.c.writers.Put(m.Writer)
	m.Writer = nil
	return err
}

// tocEntry is an entry as it is written, with the names' true bytes where JSON
// would put U+FFFD for some, and where U+FFFD itself is in the name, so that
// it is not taken for such a loss. Other readers ignore these fields.
type tocEntry struct {
	*estargz.TOCEntry
	NameBytes     []byte `json:"nameBytes,omitempty"`
	LinkNameBytes []byte `json:"linkNameBytes,omitempty"`
}

// WriteTOCAndFooter ends a blob: a gzip member with a tar with the TOC, and
// the footer that tells off, where that member begins
// (github.com/containerd/stargz-snapshotter, docs/estargz.md).
func (c *compression) WriteTOCAndFooter(w io.Writer, off int64, toc *estargz.JTOC, diffHash hash.Hash) (digest.Digest, error) {
	entries := make([]tocEntry, len(toc.Entries))
	for i, e := range toc.Entries {
		entries[i].TOCEntry = e
		if e.Type == "chunk" {
			continue
		}
		if t, ok := c.times[cleanName(e.Name)]; ok {
			e.ModTime3339 = t.UTC().Format(time.RFC3339Nano)
		}
		entries[i].NameBytes = bytesOf(e.Name)
		entries[i].LinkNameBytes = bytesOf(e.LinkName)
	}
	text, err := json.Marshal(struct {
		Version int        `json:"version"`
		Entries []tocEntry `json:"entries"`
	}{toc.Version, entries})
	if err != nil {
		return "", err
	}
	zw, err := gzip.NewWriterLevel(w, c.level)
	if err != nil {
		return "", err
	}
	plain := io.Writer(zw)
	if diffHash != nil {
		plain = io.MultiWriter(zw, diffHash)
	}
	tw := tar.NewWriter(plain)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: estargz.TOCTarName, Size: int64(len(text))}); err != nil {
		return "", err
	}
	if _, err := tw.Write(text); err != nil {
		return "", err
	}
	if err := tw.Close(); err != nil {
		return "", err
	}
	if err := zw.Close(); err != nil {
		return "", err
	}
	// The extra field of an empty member has one subfield, SG.
	subfield := fmt.Sprintf("%016xSTARGZ", off)
	extra := binary.LittleEndian.AppendUint16([]byte("SG"), uint16(len(subfield)))
	if _, err := w.Write(estargz.CreateGzipFooter(append(extra, subfield...))); err != nil {
		return "", err
	}
	return digest.FromBytes(text), nil
}

// bytesOf is s if JSON cannot hold it, or if it might be thought so.
func bytesOf(s string) []byte {
	if utf8.ValidString(s) && !bytes.ContainsRune([]byte(s), utf8.RuneError) {
		return nil
	}
	return []byte(s)
}
