package estargz

import (
	"archive/tar"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"
	digest "github.com/opencontainers/go-digest"
)

// tocVersion is that of the format (github.com/containerd/stargz-snapshotter,
// docs/estargz.md).
const tocVersion = 1

// tocEntry is an entry of the TOC. Beside the format's own fields it has what
// that cannot say, and other readers ignore.
type tocEntry struct {
	estargz.TOCEntry
	// The names' true bytes where JSON would put U+FFFD for some, and where
	// U+FFFD itself is in the name, so that it is not taken for such a loss.
	NameBytes     []byte `json:"nameBytes,omitempty"`
	LinkNameBytes []byte `json:"linkNameBytes,omitempty"`
	// MemberSize is how many bytes of the blob a file's last chunk takes. By
	// the format a reader knows only where the next file's begin, behind the
	// headers between them, and would fetch these too.
	MemberSize int64 `json:"memberSize,omitempty"`
}

// toc is a table of contents under way.
type toc struct {
	entries       []*tocEntry
	users, groups map[int]string // last names given
}

// add adds the entry of a header.
func (t *toc) add(h *tar.Header) *tocEntry {
	e := &tocEntry{
		TOCEntry: estargz.TOCEntry{
			Name: h.Name, Mode: h.Mode, UID: h.Uid, GID: h.Gid,
			Uname: nameIfNew(&t.users, h.Uid, h.Uname), Gname: nameIfNew(&t.groups, h.Gid, h.Gname),
			ModTime3339: modTime(h.ModTime), LinkName: h.Linkname,
		},
		NameBytes: bytesOf(h.Name), LinkNameBytes: bytesOf(h.Linkname),
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, xattrPrefix); ok {
			if e.Xattrs == nil {
				e.Xattrs = map[string][]byte{}
			}
			e.Xattrs[name] = []byte(v)
		}
	}
	switch h.Typeflag {
	case tar.TypeReg:
		e.Type, e.Size = "reg", h.Size
		if h.Size == 0 {
			e.Digest = digest.FromBytes(nil).String()
		}
	case tar.TypeDir:
		e.Type = "dir"
	case tar.TypeSymlink:
		e.Type = "symlink"
	case tar.TypeLink:
		e.Type = "hardlink"
	case tar.TypeChar:
		e.Type, e.DevMajor, e.DevMinor = "char", int(h.Devmajor), int(h.Devminor)
	case tar.TypeBlock:
		e.Type, e.DevMajor, e.DevMinor = "block", int(h.Devmajor), int(h.Devminor)
	case tar.TypeFifo:
		e.Type = "fifo"
	}
	t.entries = append(t.entries, e)
	return e
}

// addChunk adds the entry of a chunk of the file name, not its first.
func (t *toc) addChunk(name string) *tocEntry {
	e := &tocEntry{TOCEntry: estargz.TOCEntry{Name: name, Type: "chunk"}}
	t.entries = append(t.entries, e)
	return e
}

// nameIfNew returns name, or "" if it was the last one of id: so the format has
// it, to save space.
func nameIfNew(names *map[int]string, id int, name string) string {
	if name == "" || (*names)[id] == name {
		return ""
	}
	if *names == nil {
		*names = map[int]string{}
	}
	(*names)[id] = name
	return name
}

// modTime is t as the TOC has it: "" for the epoch, and with the nanoseconds,
// which other writers round away.
func modTime(t time.Time) string {
	if t.IsZero() || t.Equal(time.Unix(0, 0)) {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// bytesOf is s if JSON cannot hold it, or if it might be thought so.
func bytesOf(s string) []byte {
	if utf8.ValidString(s) && !strings.ContainsRune(s, utf8.RuneError) {
		return nil
	}
	return []byte(s)
}

// write ends a blob: a gzip member with a tar with the TOC, and the footer
// that tells where that member begins. It returns the digest of the TOC.
func (t *toc) write(out *output, level int) (digest.Digest, error) {
	text, err := json.Marshal(struct {
		Version int         `json:"version"`
		Entries []*tocEntry `json:"entries"`
	}{tocVersion, t.entries})
	if err != nil {
		return "", err
	}
	begin := out.size
	zw, err := gzip.NewWriterLevel(out, level)
	if err != nil {
		return "", err
	}
	tw := tar.NewWriter(io.MultiWriter(zw, &out.plain))
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
	// The footer is an empty member whose extra field has one subfield, SG.
	subfield := fmt.Sprintf("%016xSTARGZ", begin)
	extra := binary.LittleEndian.AppendUint16([]byte("SG"), uint16(len(subfield)))
	if _, err := out.Write(estargz.CreateGzipFooter(append(extra, subfield...))); err != nil {
		return "", err
	}
	return digest.FromBytes(text), nil
}
