package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	stock "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/image/estargz"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/image"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
)

// bench makes the layers that are measured, each once.
type bench struct {
	im    *image.Image
	start reads
	dir   string // takes them
}

// layer returns the path of the i-th layer as eStargz.
func (b *bench) layer(ctx context.Context, i int, w way, s successor) (string, error) {
	path := filepath.Join(b.dir, fmt.Sprintf("%d-%d-%t-%s", i, w.chunk, w.stock, s.name))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	plain, err := os.CreateTemp(b.dir, "plain-*")
	if err != nil {
		return "", err
	}
	defer os.Remove(plain.Name())
	defer plain.Close()
	buffered := bufio.NewWriterSize(plain, 1<<20)
	if err := s.rewrite(buffered, b.im.Blob(b.im.Layers[i])); err != nil {
		return "", err
	}
	if err := buffered.Flush(); err != nil {
		return "", err
	}
	size, err := plain.Seek(0, io.SeekCurrent)
	if err != nil {
		return "", err
	}
	out, err := os.CreateTemp(b.dir, "estargz-*")
	if err != nil {
		return "", err
	}
	defer out.Close()
	if err := convert(ctx, out, io.NewSectionReader(plain, 0, size), w); err != nil {
		return "", err
	}
	return path, os.Rename(out.Name(), path)
}

func convert(ctx context.Context, out io.Writer, plain *io.SectionReader, w way) error {
	if !w.stock {
		_, err := estargz.Convert(ctx, out, plain, estargz.Options{ChunkSize: w.chunk})
		return err
	}
	const level = 6 // ours
	blob, err := stock.Build(plain, stock.WithChunkSize(w.chunk), stock.WithCompressionLevel(level), stock.WithContext(ctx))
	if err != nil {
		return err
	}
	defer blob.Close()
	_, err = io.Copy(out, blob)
	return err
}

// cutting puts a layer into IPFS.
type cutting func(ctx context.Context, blob *os.File, put ipfs.PutFunc) (cid.Cid, int64, error)

// atFiles cuts layers at their files.
func atFiles(sizes importer.LeafSizes) cutting {
	return func(ctx context.Context, blob *os.File, put ipfs.PutFunc) (cid.Cid, int64, error) {
		info, err := blob.Stat()
		if err != nil {
			return cid.Undef, 0, err
		}
		cuts, err := estargz.Cuts(ctx, source{blob, info.Size()})
		if err != nil {
			return cid.Undef, 0, err
		}
		return importer.Layer(ctx, blob, cuts, sizes, put)
	}
}

// every cuts layers into leaves of one size.
func every(size int64) cutting {
	return func(ctx context.Context, blob *os.File, put ipfs.PutFunc) (cid.Cid, int64, error) {
		info, err := blob.Stat()
		if err != nil {
			return cid.Undef, 0, err
		}
		var cuts []importer.Cut
		for off := size; off < info.Size(); off += size {
			cuts = append(cuts, importer.Cut{Offset: off, Must: true})
		}
		return importer.Layer(ctx, blob, cuts, importer.LeafSizes{Own: 1, Target: 1, Max: 1}, put)
	}
}

func kubo(ctx context.Context, blob *os.File, put ipfs.PutFunc) (cid.Cid, int64, error) {
	return importer.File(ctx, blob, put)
}

func standard(ctx context.Context, blob *os.File, put ipfs.PutFunc) (cid.Cid, int64, error) {
	return importer.ByProfile(ctx, importer.UnixFS2025, blob, put)
}

// source is a layer's blob as its readers want it.
type source struct {
	*os.File
	size int64
}

func (s source) Size() int64 { return s.size }

func (s source) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return s.File.ReadAt(p, off)
}
