package layer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/ipfs-stargz/ipfs-stargz/fs/internal/durable"
)

// Save writes what is needed to mount the layer again to dir, which it makes
// if it is missing: an index for [Load], and the TOC for [LoadEntries]. They are
// one file, whole and on the disk when Save returns nil, which replaces an
// earlier one at once. One layer has one directory.
func Save(dir string, toc *TOC) error {
	if len(toc.raw) == 0 {
		return errors.New("save layer index: the table of contents was not read from a layer")
	}
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = durable.Write(filepath.Join(dir, indexName), func(f *os.File) error { return writeIndex(f, toc) })
	}
	if err != nil {
		return fmt.Errorf("save layer index: %w", err)
	}
	return nil
}

// writeIndex writes the file that the constants of index.go describe.
func writeIndex(w io.WriterAt, toc *TOC) error {
	objects := slices.Clone(toc.Objects)
	slices.SortFunc(objects, func(a, b Object) int { return bytes.Compare(a.Key[:], b.Key[:]) })
	tables, total, chunks := tables(objects)

	le := binary.LittleEndian
	head := make([]byte, headerSize)
	copy(head[hMagic:], indexMagic)
	le.PutUint32(head[hTables:], checksum(tables))
	sum, err := hex.DecodeString(toc.Digest.Encoded())
	if err != nil {
		return fmt.Errorf("digest %q of the table of contents: %w", toc.Digest, err)
	}
	copy(head[hDigest:], sum)
	le.PutUint32(head[hFormat:], uint32(toc.Format))
	le.PutUint32(head[hTOC:], checksum(toc.raw))
	for at, v := range map[int]int64{
		hBlobSize: toc.BlobSize, hPrefetch: toc.PrefetchSize, hBytes: total,
		hObjects: int64(len(objects)), hChunks: int64(chunks),
		hTOCStart: toc.footer.tocStart, hTOCEnd: toc.footer.tocEnd,
		hPayload: toc.footer.payloadEnd, hJSONSize: toc.footer.jsonSize,
	} {
		le.PutUint64(head[at:], uint64(v))
	}
	le.PutUint32(head[hChecksum:], checksum(head[hTables:]))

	bw := bufio.NewWriterSize(io.NewOffsetWriter(w, 0), 256<<10)
	for _, b := range [][]byte{head, tables, toc.raw} {
		if _, err := bw.Write(b); err != nil {
			return err
		}
	}
	return bw.Flush()
}

// tables lays out the records of objects and of their chunks, of which it
// also returns the sum of the objects' sizes and the number of the chunks.
func tables(objects []Object) (b []byte, total int64, chunks int) {
	for _, o := range objects {
		total += o.Size
		chunks += len(o.Chunks)
	}
	le := binary.LittleEndian
	b = make([]byte, 0, len(objects)*objectSize+chunks*chunkSize)
	first := 0
	for _, o := range objects {
		b = append(b, o.Key[:]...)
		b = le.AppendUint64(b, uint64(o.Size))
		b = le.AppendUint32(b, uint32(first))
		b = le.AppendUint32(b, uint32(len(o.Chunks)))
		first += len(o.Chunks)
	}
	for _, o := range objects {
		for _, c := range o.Chunks {
			b = le.AppendUint64(b, uint64(c.Offset))
			b = le.AppendUint64(b, uint64(c.BlobOffset))
			b = le.AppendUint64(b, uint64(c.BlobSize))
			b = le.AppendUint32(b, uint32(c.Size))
			b = le.AppendUint32(b, uint32(c.InnerOffset))
			b = append(b, c.Digest[:]...)
		}
	}
	return b, total, chunks
}

// LoadEntries reads the entries of the TOC that Save wrote to dir: those that
// [ReadTOC] returned. Its errors are those of [Load], and ctx's.
func LoadEntries(ctx context.Context, dir string) ([]Entry, error) {
	f, err := os.Open(filepath.Join(dir, indexName))
	if err != nil {
		return nil, fmt.Errorf("open layer index: %w", err)
	}
	defer f.Close()
	h, raw, err := readRawTOC(f)
	if err == nil {
		var entries []Entry
		if entries, err = parseEntries(ctx, h.footer, raw); err == nil {
			return entries, nil
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, f.Name(), err)
}

// readRawTOC returns the compressed TOC of an index file. Its checksum says that
// it is the one that was verified when the file was written; to hash the JSON
// again would take a sixth as long as reading it.
func readRawTOC(f *os.File) (h header, raw []byte, err error) {
	fi, err := f.Stat()
	if err != nil {
		return h, nil, err
	}
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(f, head); err != nil {
		return h, nil, err
	}
	if h, err = parseHeader(head, fi.Size()); err != nil {
		return h, nil, err
	}
	raw = make([]byte, h.footer.tocEnd-h.footer.tocStart)
	if _, err := f.ReadAt(raw, h.tablesEnd()); err != nil {
		return h, nil, err
	}
	if checksum(raw) != h.tocSum {
		return h, nil, errors.New("wrong checksum of its table of contents")
	}
	return h, raw, nil
}
