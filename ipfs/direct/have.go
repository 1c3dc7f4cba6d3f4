package direct

import (
	"bufio"
	"context"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// haveProtocol is how a peer that fetches a file learns who holds which parts
// of it. The one that wants to know opens a stream and names files on it; the
// other answers for each at once, and again whenever that changes, until
// the file is named as of no interest any more or the stream ends.
const haveProtocol protocol.ID = "/ipfs-stargz/have/1.0.0"

const (
	// gatherTime is for how long changes are gathered before they are told.
	gatherTime = 20 * time.Millisecond
	// writeTimeout is for how long a peer may leave a message unread.
	writeTimeout = 20 * time.Second
)

// watchers is the side that tells.
type watchers struct {
	inventory *inventory
	ctx       context.Context
	done      sync.WaitGroup
}

// serve is the handler of a stream.
func (w *watchers) serve(s network.Stream) {
	w.done.Add(1)
	defer w.done.Done()
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	reset := func() { _ = s.Reset() }
	defer reset()
	stop := context.AfterFunc(ctx, reset) // ends the read below
	defer stop()

	t := &teller{watchers: w, stream: s, fail: cancel}
	files := make(map[cid.Cid]context.CancelFunc)
	in := bufio.NewReader(s)
	for {
		m, err := readMessage(in)
		if err != nil {
			break
		}
		end, watched := files[m.root]
		switch {
		case m.kind == kindWatch && !watched && len(files) < maxWatched:
			fctx, end := context.WithCancel(ctx)
			files[m.root] = end
			w.done.Go(func() { t.tell(fctx, m.root) })
		case m.kind == kindUnwatch && watched:
			end()
			delete(files, m.root)
		case m.kind == kindWatch && watched, m.kind == kindUnwatch:
		default:
			return // it breaks the rules; the stream is reset
		}
	}
}

// teller writes to one stream.
type teller struct {
	*watchers
	stream network.Stream
	fail   context.CancelFunc

	mu sync.Mutex // one message after the other
}

// tell keeps the peer informed about one file until ctx ends.
func (t *teller) tell(ctx context.Context, root cid.Cid) {
	shelf := t.inventory.open(root)
	defer t.inventory.release(shelf)
	var told set
	for first := true; ; first = false {
		held, changed := t.inventory.state(shelf)
		b := difference(root, kindGone, told, held)
		b = append(b, difference(root, kindHave, held, told)...)
		if len(b) == 0 && first {
			b = message{kind: kindHave, root: root}.append(nil)
		}
		if err := t.write(b); err != nil {
			t.fail()
			return
		}
		told = held
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(gatherTime):
		case <-ctx.Done():
			return
		}
	}
}

func (t *teller) write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.stream.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := t.stream.Write(b)
	return err
}

// difference encodes what is in a and not in b; nothing if that is empty.
func difference(root cid.Cid, kind byte, a, b set) (out []byte) {
	m := message{kind: kind, root: root}
	for s := range a.spans(b) {
		if m.spans = append(m.spans, s); len(m.spans) == maxSpans {
			out = m.append(out)
			m.spans = m.spans[:0]
			// The next message counts from 0 again, like every one.
		}
	}
	if len(m.spans) > 0 {
		out = m.append(out)
	}
	return out
}
