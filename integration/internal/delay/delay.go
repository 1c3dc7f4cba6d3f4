// Package delay is a TCP relay that makes a link long without making it
// narrow: what comes in goes out after a fixed time, in both directions, at
// whatever rate it came. It stands in for netem, which not every kernel has.
package delay

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// What one direction of one connection holds at most. It is what a link of 10
// Gbit/s has under way in 25 ms; whoever sends more waits, as on a full link.
const (
	maxBytes  = 32 << 20
	maxChunks = 16 << 10
	readSize  = 64 << 10
)

// Relay is a running relay. Use [Start].
type Relay struct {
	listener net.Listener
	dial     Dial
	delay    time.Duration

	ctx    context.Context
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// Dial opens a connection to where the relay leads.
type Dial func(ctx context.Context) (net.Conn, error)

// Start relays each connection that l accepts to one that dial opens, with
// oneWay of delay in each direction: a round trip takes twice that. A
// connection that cannot be relayed is closed. The relay owns l.
func Start(l net.Listener, dial Dial, oneWay time.Duration) *Relay {
	r := &Relay{listener: l, dial: dial, delay: oneWay}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.done.Go(r.accept)
	return r
}

// Close ends all connections at once, and returns when nothing runs any more.
func (r *Relay) Close() error {
	r.cancel()
	err := r.listener.Close()
	r.done.Wait()
	return err
}

func (r *Relay) accept() {
	for {
		c, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.done.Go(func() { r.relay(c) })
	}
}

// relay serves one connection until both directions are through.
func (r *Relay) relay(near net.Conn) {
	defer near.Close()
	far, err := r.dial(r.ctx)
	if err != nil {
		return
	}
	defer far.Close()
	stop := context.AfterFunc(r.ctx, func() { closeBoth(near, far) })
	defer stop()
	var both sync.WaitGroup
	for _, way := range []struct{ from, to net.Conn }{{near, far}, {far, near}} {
		both.Go(func() {
			if err := r.carry(way.from, way.to); err != nil {
				// As on a real link, what is broken on one side shows on both.
				closeBoth(near, far)
			}
		})
	}
	both.Wait()
}

func closeBoth(a, b net.Conn) {
	a.Close()
	b.Close()
}

// chunk is what was read at once, and when it is to be written.
type chunk struct {
	data []byte
	due  time.Time
}

// carry moves one direction; the end of the stream is delayed like the rest.
func (r *Relay) carry(from, to net.Conn) error {
	ctx, cancel := context.WithCancel(r.ctx)
	queue := make(chan chunk, maxChunks)
	room := semaphore.NewWeighted(maxBytes)
	var readErr error
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(queue)
		readErr = r.read(ctx, from, queue, room)
	})
	err := r.write(ctx, to, queue, room)
	cancel()
	if err != nil {
		from.Close()
	}
	reader.Wait()
	return errors.Join(err, readErr)
}

// read fills the queue until the stream ends, which is a chunk without data.
func (r *Relay) read(ctx context.Context, from net.Conn, queue chan<- chunk, room *semaphore.Weighted) error {
	buf := make([]byte, readSize)
	for {
		n, err := from.Read(buf)
		c := chunk{due: time.Now().Add(r.delay)}
		if n > 0 {
			c.data = append([]byte(nil), buf[:n]...)
			if err := room.Acquire(ctx, int64(n)); err != nil {
				return err
			}
		}
		if n > 0 || errors.Is(err, io.EOF) {
			select {
			case queue <- c:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// write empties the queue, each chunk when it is due.
func (r *Relay) write(ctx context.Context, to net.Conn, queue <-chan chunk, room *semaphore.Weighted) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for c := range queue {
		if wait := time.Until(c.due); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if len(c.data) == 0 {
			break
		}
		if _, err := to.Write(c.data); err != nil {
			return err
		}
		room.Release(int64(len(c.data)))
	}
	return closeWrite(to)
}

// closeWrite tells the other side that no more comes, and lets it answer.
func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}
