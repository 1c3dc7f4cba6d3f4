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
)

// Save writes what is needed to mount the layer again to dir, which it makes
// if it is missing: an index for [Load], and the TOC for [LoadTOC]. It is on
// the disk, whole, when Save returns nil; an earlier one is replaced at once.
// One layer has one directory.
func Save(dir string, toc *TOC) (err error) {
	if len(toc.raw) == 0 {
		return errors.New("save layer index: the table of contents was not read from a layer")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save layer index: %w", err)
	}
	f, err := os.CreateTemp(dir, "."+indexName+"-*")
	if err != nil {
		return fmt.Errorf("save layer index: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("save layer index: %w", err)
		}
	}()
	if err := writeIndex(f, toc); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, indexName)); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
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
	for at, v := range map[int]int64{
		hFormat: int64(toc.Format), hBlobSize: toc.BlobSize, hPrefetch: toc.PrefetchSize, hBytes: total,
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

// LoadTOC reads the TOC that Save wrote to dir, verifies it against its digest
// again and checks it as [ReadTOC] does. Its errors are those of [Load].
func LoadTOC(ctx context.Context, dir string) (*TOC, error) {
	f, err := os.Open(filepath.Join(dir, indexName))
	if err != nil {
		return nil, fmt.Errorf("open layer index: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open layer index: %w", err)
	}
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(f, head); err != nil {
		return nil, fmt.Errorf("%w: read %s: %w", ErrDamaged, f.Name(), err)
	}
	h, err := parseHeader(head, fi.Size())
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, f.Name(), err)
	}
	raw := make([]byte, h.footer.tocEnd-h.footer.tocStart)
	if _, err := f.ReadAt(raw, h.tablesEnd()); err != nil {
		return nil, fmt.Errorf("%w: read %s: %w", ErrDamaged, f.Name(), err)
	}
	toc, err := parseTOC(ctx, h.footer, h.blobSize, raw, h.digest)
	if err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, f.Name(), err)
	}
	return toc, nil
}
