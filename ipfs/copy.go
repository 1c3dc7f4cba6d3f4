package ipfs

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"
)

// How much of a file is on its way while it is copied: enough for a link of a
// gigabit and 100 ms, and few enough to hold in memory.
const (
	copyWindow  = 2 << 20 // bytes, and what is left of a leaf
	copyWindows = 8
)

// Copy writes n bytes from off to w, in order, while what follows is fetched
// already, in bulk. It writes fewer only with an error: [io.EOF] at the file's
// end, else as [File.ReadAt], or that of w.
func (f *File) Copy(ctx context.Context, w io.Writer, off, n int64) error {
	if off < 0 || n < 0 {
		return fmt.Errorf("ipfs: file %s: %d bytes from %d cannot be read", f.root, n, off)
	}
	short := n > f.Size()-off
	n = max(0, min(n, f.Size()-off))

	type window struct {
		data []byte
		err  chan error // one, when data is filled
	}
	free, filled := make(chan []byte, copyWindows), make(chan window, copyWindows)
	for range copyWindows {
		free <- nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(filled)
		for from, end := off, off+n; from < end; {
			var buf []byte
			select {
			case buf = <-free:
			case <-ctx.Done():
				return ctx.Err()
			}
			// Of whole leaves, so that none is asked for twice.
			to := min(end, f.table.end(f.table.at(min(from+copyWindow, end)-1)))
			if int64(cap(buf)) < to-from {
				buf = make([]byte, to-from)
			}
			x, at := window{buf[:to-from], make(chan error, 1)}, from
			g.Go(func() error {
				err := f.read(ctx, int64(len(x.data)), at, func() []byte { return x.data }, Want{Root: f.root, Bulk: true})
				x.err <- err
				return err
			})
			filled <- x // there is room: as many as there are buffers
			from = to
		}
		return nil
	})
	g.Go(func() error {
		for x := range filled {
			if err := <-x.err; err != nil {
				return err
			}
			if _, err := w.Write(x.data); err != nil {
				return err
			}
			free <- x.data[:cap(x.data)]
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if short {
		return io.EOF
	}
	return nil
}
