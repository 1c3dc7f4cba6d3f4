package fs_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"

	"github.com/ipfs-stargz/ipfs-stargz/fs"
)

// made is an image of layers that have a table of contents and no contents: for
// what happens to names.
type made struct {
	cids  []string
	tocs  []string // digests
	jsons [][]byte // the tables of contents, decompressed
}

// pull adds the image's layers.
func (m made) pull(t testing.TB, f *fs.FS) {
	t.Helper()
	for i, cid := range m.cids {
		if _, _, err := f.Add(t.Context(), cid, m.tocs[i], "", fs.Run{CIDs: m.cids[:i]}); err != nil {
			t.Fatal(err)
		}
	}
}

// makeImage puts an image of so many layers, each of about so many names, into
// the store. The names look as a distribution's do, and a layer hides and
// replaces a few of the one below.
func (s *store) makeImage(t testing.TB, name string, layers, names int) made {
	t.Helper()
	if s.blobs == nil {
		s.blobs = map[string][]byte{}
	}
	var m made
	for i := range layers {
		text, payload := tocOf(t, name, i, names)
		cid := fmt.Sprintf("%s-%d", name, i)
		s.blobs[cid] = tocBlob(t, text, payload)
		m.cids = append(m.cids, cid)
		m.tocs = append(m.tocs, digest.FromBytes(text).String())
		m.jsons = append(m.jsons, text)
	}
	return m
}

// tocOf returns a table of contents as estargz writes it, and how long the
// payload is that its offsets lie in.
func tocOf(t testing.TB, name string, layer, names int) (text []byte, payload int64) {
	t.Helper()
	const perDir, mtime = 24, "2024-02-29T12:30:15Z"
	toc := estargz.JTOC{Version: 1}
	add := func(e estargz.TOCEntry) {
		e.ModTime3339 = mtime
		toc.Entries = append(toc.Entries, &e)
	}
	sum := func(n ...int) string {
		return digest.NewDigestFromBytes(digest.SHA256, sum256(name, layer, n)).String()
	}
	var dir string
	for i := 0; len(toc.Entries) < names; i++ {
		if i%perDir == 0 {
			dir = fmt.Sprintf("usr/lib/python3/dist-packages/package_%03d_%02d/", i/perDir, layer)
			if i/perDir%8 == 7 { // one that the layer below has too
				dir = fmt.Sprintf("usr/share/doc/shared-%03d/", i/perDir)
				if layer > 0 {
					add(estargz.TOCEntry{Name: fmt.Sprintf("%s.wh.module_%06d.py", dir, i+3), Type: "reg", Digest: sum()})
				}
			}
			add(estargz.TOCEntry{Name: dir, Type: "dir", Mode: 0o755})
		}
		e := estargz.TOCEntry{Name: fmt.Sprintf("%smodule_%06d.py", dir, i), Type: "reg", Mode: 0o644, Size: int64(3000 + i%5000), Offset: payload}
		e.Digest, e.ChunkDigest = sum(i), sum(i)
		switch i % 40 {
		case 5:
			add(estargz.TOCEntry{Name: e.Name, Type: "symlink", LinkName: fmt.Sprintf("module_%06d.py", i-1), Mode: 0o777})
			continue
		case 15:
			add(estargz.TOCEntry{Name: e.Name, Type: "hardlink", LinkName: fmt.Sprintf("%smodule_%06d.py", dir, i-1), Mode: 0o644})
			continue
		case 25: // a file of several chunks
			e.Size, e.ChunkSize = 10<<20, 4<<20
			add(e)
			payload++
			add(estargz.TOCEntry{Name: e.Name, Type: "chunk", Offset: payload, ChunkOffset: 4 << 20, ChunkSize: 4 << 20, ChunkDigest: sum(i, 1)})
			payload++
			add(estargz.TOCEntry{Name: e.Name, Type: "chunk", Offset: payload, ChunkOffset: 8 << 20, ChunkDigest: sum(i, 2)})
		default:
			add(e)
		}
		payload++
	}
	text, err := json.MarshalIndent(toc, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	return text, payload
}

func sum256(name string, layer int, n []int) []byte {
	sum := sha256.Sum256(fmt.Append(nil, name, " ", layer, " ", n))
	return sum[:]
}

// tocBlob returns an eStargz blob whose payload is nothing but zeros.
func tocBlob(t testing.TB, toc []byte, payload int64) []byte {
	t.Helper()
	var b bytes.Buffer
	b.Write(make([]byte, payload))
	zw := gzip.NewWriter(&b)
	tw := tar.NewWriter(zw)
	footer, err := gzip.NewWriterLevel(&b, gzip.NoCompression)
	if err != nil {
		t.Fatal(err)
	}
	footer.Extra = fmt.Appendf([]byte("SG\x16\x00"), "%016xSTARGZ", payload)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: estargz.TOCTarName, Size: int64(len(toc))}); err != nil {
		t.Fatal(err)
	}
	if _, err := tw.Write(toc); err != nil {
		t.Fatal(err)
	}
	for _, w := range []interface{ Close() error }{tw, zw, footer} {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}
