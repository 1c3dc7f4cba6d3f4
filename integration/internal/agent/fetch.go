package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

const (
	progressInterval = 50 * time.Millisecond
	heapInterval     = 5 * time.Millisecond
	verifyBytes      = 4 << 20
)

func (s *server) fetch(ctx context.Context, a Fetch) (out Fetched, err error) {
	p, err := s.peer(a.Peer)
	if err != nil {
		return out, err
	}
	f := &fetching{Fetch: a, peer: p, out: &out, heap: watchHeap()}
	begin := time.Now()
	err = f.open(ctx)
	if err == nil && a.N != 0 {
		stop := func() {}
		if a.Progress {
			stop = s.report(f)
		}
		err = f.run(ctx)
		stop()
	}
	out.Took = time.Since(begin)
	out.HeapBefore, out.HeapPeak = f.heap.stop()
	out.Leaves = f.leaves.load()
	var missing *ipfs.UnavailableError
	if errors.As(err, &missing) {
		out.Missing, out.Unavailable = len(missing.CIDs), missing.Error()
		return out, nil
	}
	return out, err
}

// fetching is a Fetch under way.
type fetching struct {
	Fetch
	peer   *ipfsPeer
	file   *ipfs.File
	list   []ipfs.Leaf // those wanted
	out    *Fetched
	heap   *heapWatch
	leaves sharedBits
}

func (f *fetching) open(ctx context.Context) (err error) {
	f.file = f.peer.files[f.Root]
	if f.file == nil {
		root, err := cid.Decode(f.Root)
		if err != nil {
			return err
		}
		if f.file, err = ipfs.OpenFile(ctx, f.peer.blocks, f.peer.tables, root, f.Size); err != nil {
			return err
		}
		f.peer.files[f.Root] = f.file
	}
	total := f.file.NumLeaves()
	f.leaves.bits = NewBits(total)
	if f.N < 0 {
		f.N = total - f.First
	}
	if f.First < 0 || f.First+f.N > total {
		return fmt.Errorf("leaves %d to %d of %d", f.First, f.First+f.N, total)
	}
	i := 0
	for leaf := range f.file.Leaves() {
		if i >= f.First && i < f.First+f.N {
			f.list = append(f.list, leaf)
		}
		i++
	}
	return nil
}

func (f *fetching) run(ctx context.Context) error {
	switch f.Mode {
	case Bulk:
		return f.get(ctx, f.First, f.list, true)
	case Each:
		for i := range f.list {
			begin := time.Now()
			if err := f.get(ctx, f.First+i, f.list[i:i+1], false); err != nil {
				return err
			}
			f.out.Each = append(f.out.Each, time.Since(begin))
		}
		return nil
	case Range:
		last := f.list[len(f.list)-1]
		buf := make([]byte, last.Offset+last.Size-f.list[0].Offset)
		n, err := f.file.ReadAt(ctx, buf, f.list[0].Offset)
		f.out.Bytes += int64(n)
		return err
	default:
		return fmt.Errorf("there is no mode %q", f.Mode)
	}
}

// get fetches leaves, of which the first one has index first.
func (f *fetching) get(ctx context.Context, first int, list []ipfs.Leaf, bulk bool) error {
	index := make(map[cid.Cid]int, len(list))
	want := ipfs.Want{Root: f.file.Root(), Bulk: bulk}
	for i, l := range list {
		index[l.CID] = i
		want.CIDs = append(want.CIDs, l.CID)
	}
	return f.peer.blocks.Get(ctx, want, func(c cid.Cid, data []byte) error {
		i, ok := index[c]
		if !ok || int64(len(data)) != list[i].Size {
			return fmt.Errorf("got %d bytes of %s", len(data), c)
		}
		f.out.Bytes += int64(len(data))
		f.leaves.set(first + i)
		return nil
	})
}

// report tells of the progress until it is stopped.
func (s *server) report(f *fetching) (stop func()) {
	done := make(chan struct{})
	var reporter sync.WaitGroup
	reporter.Go(func() {
		tick := time.NewTicker(progressInterval)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				// Who cannot be told of it will not be told of the end either.
				_ = s.write(reply{Progress: &Progress{f.leaves.load()}})
			}
		}
	})
	return func() { close(done); reporter.Wait() }
}

// verify reads what should be here by now.
func (s *server) verify(ctx context.Context, v Verify) error {
	p, err := s.peer(v.Peer)
	if err != nil {
		return err
	}
	f := p.files[v.Root]
	if f == nil || f.Size() != v.Content.Size {
		return fmt.Errorf("file %s was not fetched before, or has not %d bytes", v.Root, v.Content.Size)
	}
	want, got := sha256.New(), sha256.New()
	if _, err := io.Copy(want, v.Content.Reader()); err != nil {
		return err
	}
	buf := make([]byte, verifyBytes)
	for off := int64(0); off < f.Size(); {
		n, err := f.ReadAt(ctx, buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if _, err := got.Write(buf[:n]); err != nil {
			return err
		}
		off += int64(n)
	}
	if !bytes.Equal(want.Sum(nil), got.Sum(nil)) {
		return fmt.Errorf("file %s has other bytes than were seeded", v.Root)
	}
	return nil
}

// sharedBits is a set that is read while it grows.
type sharedBits struct {
	mu   sync.Mutex
	bits Bits
}

func (b *sharedBits) set(i int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bits.Set(i)
}

func (b *sharedBits) load() Bits {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append(Bits(nil), b.bits...)
}

// heapWatch looks again and again at how much of the heap is in use.
type heapWatch struct {
	before int64
	peak   atomic.Int64
	done   chan struct{}
	ended  sync.WaitGroup
}

func watchHeap() *heapWatch {
	runtime.GC()
	w := &heapWatch{before: heapInUse(), done: make(chan struct{})}
	w.peak.Store(w.before)
	w.ended.Go(func() {
		tick := time.NewTicker(heapInterval)
		defer tick.Stop()
		for {
			select {
			case <-w.done:
				return
			case <-tick.C:
				w.peak.Store(max(w.peak.Load(), heapInUse()))
			}
		}
	})
	return w
}

func (w *heapWatch) stop() (before, peak int64) {
	close(w.done)
	w.ended.Wait()
	return w.before, w.peak.Load()
}

// heapInUse is what runtime.MemStats calls HeapInuse, without its stop of the
// world.
func heapInUse() int64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64() + s[1].Value.Uint64())
}
