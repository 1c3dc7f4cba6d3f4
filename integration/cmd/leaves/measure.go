package main

import (
	"context"
	"io"
	"os"
	"slices"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
)

// result is one line of the table. Sizes are in bytes.
type result struct {
	size        int64     // of the layers
	blocks      int       // that they consist of
	tree        int64     // of those that are no leaves
	started     int64     // of the blocks that a start fetches
	startBlocks int       // of them
	shared      []float64 // of each successor's blocks, the part that this image has
	speed       float64   // MB of all that are read from blocks in memory in a second of a processor
}

// file is a layer in IPFS.
type file struct {
	root cid.Cid
	size int64
}

// measure measures one way.
func (b *bench) measure(ctx context.Context, w way) (result, error) {
	var r result
	store := blockstest.NewMemory()
	sizes := map[cid.Cid]int64{}
	files, err := b.importAll(ctx, w, successor{}, func(ctx context.Context, block blocks.Block) error {
		if block.Cid().Type() == cid.DagProtobuf {
			r.tree += int64(len(block.RawData()))
		}
		sizes[block.Cid()] = int64(len(block.RawData()))
		return store.Put(ctx, block)
	})
	if err != nil {
		return r, err
	}
	r.blocks = len(sizes)
	for _, f := range files {
		r.size += f.size
	}
	fetched := &counting{Memory: store, sizes: map[cid.Cid]int64{}}
	if err := b.startFrom(ctx, fetched, files); err != nil {
		return r, err
	}
	for _, n := range fetched.sizes {
		r.started += n
		r.startBlocks++
	}
	if r.speed, err = readAll(ctx, store, files); err != nil {
		return r, err
	}
	for _, s := range successors() {
		var all, same int64
		seen := map[cid.Cid]bool{}
		_, err := b.importAll(ctx, w, s, func(_ context.Context, block blocks.Block) error {
			if c := block.Cid(); !seen[c] {
				seen[c] = true
				all += int64(len(block.RawData()))
				same += sizes[c] // 0 if it is not there
			}
			return nil
		})
		if err != nil {
			return r, err
		}
		r.shared = append(r.shared, float64(same)/float64(all))
	}
	return r, nil
}

// importAll imports the layers of the image, or of its successor.
func (b *bench) importAll(ctx context.Context, w way, s successor, put ipfs.PutFunc) ([]file, error) {
	var files []file
	for i := range b.im.Layers {
		blob, err := b.layer(ctx, i, w, s)
		if err != nil {
			return nil, err
		}
		f, err := os.Open(blob)
		if err != nil {
			return nil, err
		}
		root, size, err := w.put(ctx, f, put)
		f.Close()
		if err != nil {
			return nil, err
		}
		files = append(files, file{root, size})
	}
	return files, nil
}

// counting keeps which blocks were got, each once, as a node with a store does.
type counting struct {
	*blockstest.Memory
	sizes map[cid.Cid]int64
}

func (c *counting) Get(ctx context.Context, w ipfs.Want, fn func(cid.Cid, []byte) error) error {
	return c.Memory.Get(ctx, w, func(id cid.Cid, data []byte) error {
		c.sizes[id] = int64(len(data))
		return fn(id, data)
	})
}

// startFrom reads of the layers what a start of the image reads.
func (b *bench) startFrom(ctx context.Context, from ipfs.Blocks, files []file) error {
	hidden := map[string]bool{} // by a higher layer
	for _, f := range slices.Backward(files) {
		src, err := ipfs.OpenFile(ctx, from, "", f.root, f.size)
		if err != nil {
			return err
		}
		toc, err := layer.ReadTOC(ctx, src, "")
		if err != nil {
			return err
		}
		dir, err := os.MkdirTemp(b.dir, "index-*")
		if err != nil {
			return err
		}
		if err := layer.Save(dir, toc); err != nil {
			return err
		}
		index, err := layer.Load(dir)
		if err != nil {
			return err
		}
		err = b.readChunks(ctx, toc, layer.Open(index, src), hidden)
		if err := index.Close(); err != nil {
			return err
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readChunks reads what is read of one layer.
func (b *bench) readChunks(ctx context.Context, toc *layer.TOC, l *layer.Layer, hidden map[string]bool) error {
	objects := map[layer.Key]layer.Object{}
	for _, o := range toc.Objects {
		objects[o.Key] = o
	}
	var names []string
	for _, e := range toc.Entries {
		names = append(names, e.Name)
		if hidden[e.Name] || e.Type != layer.Reg {
			continue
		}
		for _, c := range objects[e.Key].Chunks {
			if !b.start.touches(e.Name, c.Offset, c.Size) {
				continue
			}
			if err := l.ReadChunk(ctx, c, make([]byte, c.Size)); err != nil {
				return err
			}
		}
	}
	for _, n := range names {
		hidden[n] = true
	}
	return nil
}

// readAll reads the files whole, and returns how many MB in a second of processor
// time it was at best: that depends less than the clock on what else runs.
func readAll(ctx context.Context, from ipfs.Blocks, files []file) (best float64, err error) {
	buf := make([]byte, 4<<20)
	for range 5 {
		var took time.Duration
		var size int64
		for _, f := range files {
			src, err := ipfs.OpenFile(ctx, from, "", f.root, f.size)
			if err != nil {
				return 0, err
			}
			begin := processorTime()
			for off := int64(0); off < src.Size(); off += int64(len(buf)) {
				if _, err := src.ReadAt(ctx, buf, off); err != nil && err != io.EOF {
					return 0, err
				}
			}
			took += processorTime() - begin
			size += f.size
		}
		best = max(best, float64(size)/1e6/took.Seconds())
	}
	return best, nil
}

// processorTime is what the process has used so far.
func processorTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0 // not reached: it fails for bad arguments only
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
