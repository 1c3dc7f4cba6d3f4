package estargz

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"runtime"

	"github.com/klauspost/compress/gzip"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

const (
	// maxWorkers bounds how many members of a layer are compressed at once, and
	// so the memory that it takes. Several layers are converted at once.
	maxWorkers = 8
	// headersBytes is about how much plain tar a member of headers holds at most.
	headersBytes = 256 << 10
	// tarBlock is what everything in a tar is a multiple of.
	tarBlock = 512
)

// member is a gzip member that is made: a chunk of one file, or headers.
type member struct {
	plain []byte
	entry *tocEntry // of the chunk; nil for headers
	last  bool      // chunk of its file
	whole bool      // the chunk is the file

	packed bytes.Buffer
	done   chan struct{} // gets a value when packed is ready
}

// writer makes the payload of an eStargz: it reads the members' plain bytes in
// their order, several goroutines compress them, and they are written in their
// order again.
type writer struct {
	contents  io.ReaderAt
	chunkSize int
	level     int

	toc toc

	free  chan *member // that nobody uses; how many there are bounds the memory
	todo  chan *member // to be compressed
	order chan *member // to be written

	headers []byte // not in a member yet: ends of files and headers
}

// write writes files, whose contents are in contents, to dst as an eStargz.
func write(ctx context.Context, dst io.Writer, files []*entry, contents io.ReaderAt, o Options) (Digests, error) {
	workers := min(runtime.GOMAXPROCS(0), maxWorkers)
	members := 2 * workers
	w := &writer{
		contents: contents, chunkSize: o.ChunkSize, level: o.Level,
		free: make(chan *member, members), todo: make(chan *member, members), order: make(chan *member, members),
	}
	for range members {
		w.free <- &member{done: make(chan struct{}, 1)}
	}
	out := &output{dst: dst, plain: plain{hash: sha256.New()}}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(w.order)
		defer close(w.todo)
		return w.read(ctx, files)
	})
	for range workers {
		g.Go(w.compress)
	}
	g.Go(func() error { return w.emit(ctx, out) })
	if err := g.Wait(); err != nil {
		return Digests{}, err
	}
	sum, err := w.toc.write(out, o.Level)
	if err != nil {
		return Digests{}, err
	}
	return Digests{
		DiffID: digest.NewDigest(digest.SHA256, out.plain.hash), TOC: sum, UncompressedSize: out.plain.size,
	}, nil
}

// output is the blob under way. What is written to it is compressed already.
type output struct {
	dst   io.Writer
	size  int64 // bytes written to it
	plain plain // what they are uncompressed
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.dst.Write(p)
	o.size += int64(n)
	return n, err
}

// plain hashes and counts what is written to it.
type plain struct {
	hash hash.Hash
	size int64
}

func (p *plain) Write(b []byte) (int, error) {
	p.size += int64(len(b))
	return p.hash.Write(b)
}

// read reads the files and sends the members that are to be made of them.
func (w *writer) read(ctx context.Context, files []*entry) error {
	for _, f := range files {
		var b bytes.Buffer
		// A writer for each header: one for all would want the contents too.
		if err := tar.NewWriter(&b).WriteHeader(f.header); err != nil {
			return fmt.Errorf("header of %q: %w", f.header.Name, err)
		}
		w.headers = append(w.headers, b.Bytes()...)
		e := w.toc.add(f.header)
		if f.header.Size > 0 {
			if err := w.flushHeaders(ctx); err != nil {
				return err
			}
			if err := w.readFile(ctx, f, e); err != nil {
				return fmt.Errorf("contents of %q: %w", f.header.Name, err)
			}
			w.headers = append(w.headers, make([]byte, -f.header.Size&(tarBlock-1))...)
		}
		if len(w.headers) >= headersBytes {
			if err := w.flushHeaders(ctx); err != nil {
				return err
			}
		}
	}
	return w.flushHeaders(ctx)
}

// flushHeaders sends what headers there are as a member.
func (w *writer) flushHeaders(ctx context.Context) error {
	if len(w.headers) == 0 {
		return nil
	}
	m, err := w.take(ctx)
	if err != nil {
		return err
	}
	m.plain = append(m.plain[:0], w.headers...)
	m.entry = nil
	w.headers = w.headers[:0]
	w.send(m)
	return nil
}

// readFile sends the contents of f in chunks. e is its entry.
func (w *writer) readFile(ctx context.Context, f *entry, e *tocEntry) error {
	size, first := f.header.Size, e
	sum := sha256.New()
	for off := int64(0); off < size; {
		n := min(int64(w.chunkSize), size-off)
		m, err := w.take(ctx)
		if err != nil {
			return err
		}
		if int64(cap(m.plain)) < n {
			m.plain = make([]byte, n)
		}
		m.plain = m.plain[:n]
		if _, err := w.contents.ReadAt(m.plain, f.contents+off); err != nil {
			return err
		}
		if off > 0 {
			e = w.toc.addChunk(f.header.Name)
		}
		e.ChunkOffset = off
		if n == int64(w.chunkSize) { // what is absent goes to the file's end
			e.ChunkSize = n
		}
		m.entry, m.last, m.whole = e, off+n == size, n == size
		if !m.whole {
			sum.Write(m.plain)
		}
		off += n
		w.send(m)
	}
	if size > int64(w.chunkSize) {
		first.Digest = digest.NewDigest(digest.SHA256, sum).String()
	}
	return nil
}

// take waits for a member that is free.
func (w *writer) take(ctx context.Context) (*member, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case m := <-w.free:
		return m, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// send passes m on. No channel can be full: each has room for all members.
func (w *writer) send(m *member) {
	w.order <- m
	w.todo <- m
}

// compress makes members until there are no more.
func (w *writer) compress() error {
	zw, err := gzip.NewWriterLevel(io.Discard, w.level)
	if err != nil {
		return err
	}
	for m := range w.todo {
		m.packed.Reset()
		zw.Reset(&m.packed)
		if _, err := zw.Write(m.plain); err != nil {
			return err
		}
		if err := zw.Close(); err != nil {
			return err
		}
		if m.entry != nil {
			m.entry.ChunkDigest = digest.FromBytes(m.plain).String()
		}
		m.done <- struct{}{}
	}
	return nil
}

// emit writes the members in their order.
func (w *writer) emit(ctx context.Context, out *output) error {
	for m := range w.order {
		select {
		case <-m.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if e := m.entry; e != nil {
			e.Offset = out.size
			if m.last {
				e.MemberSize = int64(m.packed.Len())
			}
			if m.whole {
				e.Digest = e.ChunkDigest
			}
		}
		if _, err := out.plain.Write(m.plain); err != nil {
			return err
		}
		if _, err := out.Write(m.packed.Bytes()); err != nil {
			return err
		}
		w.free <- m
	}
	return nil
}
