package direct

import (
	"bufio"
	"context"
	"errors"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// watch is the side of haveProtocol that wants to know, towards one peer.
type watch struct {
	host   host.Host
	peer   peer.ID
	wake   chan struct{}        // has room for one; what is wanted has changed
	wanted func() []cid.Cid     // the files to watch now
	heard  func(m message) bool // false: the peer breaks the rules
	lost   func()               // what was heard holds no longer
}

// Times between two tries to open the stream.
const (
	firstRetry = 500 * time.Millisecond
	lastRetry  = 30 * time.Second
)

// run keeps a stream open while there are files to watch, until ctx ends.
func (w *watch) run(ctx context.Context) {
	retry := firstRetry
	for ctx.Err() == nil {
		if len(w.wanted()) == 0 {
			select {
			case <-w.wake:
			case <-ctx.Done():
			}
			continue
		}
		began := time.Now()
		w.session(ctx)
		w.lost()
		if time.Since(began) > lastRetry {
			retry = firstRetry
		}
		select {
		case <-time.After(retry):
		case <-ctx.Done():
		}
		retry = min(2*retry, lastRetry)
	}
}

// session is one stream. It ends with ctx, with an error of the stream, and
// when the peer breaks the rules: what went wrong makes no difference.
func (w *watch) session(ctx context.Context) {
	s, err := w.host.NewStream(network.WithNoDial(ctx, "it is not connected"), w.peer, haveProtocol)
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		_ = w.listen(s)
	}()
	_ = w.ask(ctx, s)
	cancel()
	_ = s.Reset()
	<-done
}

// ask tells the peer which files to tell of.
func (w *watch) ask(ctx context.Context, s network.Stream) error {
	asked := make(map[cid.Cid]bool)
	for {
		var b []byte
		now := make(map[cid.Cid]bool)
		for _, root := range w.wanted() {
			now[root] = true
			if !asked[root] {
				b = message{kind: kindWatch, root: root}.append(b)
			}
		}
		for root := range asked {
			if !now[root] {
				b = message{kind: kindUnwatch, root: root}.append(b)
			}
		}
		asked = now
		if len(b) > 0 {
			if err := s.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
				return err
			}
			if _, err := s.Write(b); err != nil {
				return err
			}
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (w *watch) listen(s network.Stream) error {
	in := bufio.NewReader(s)
	for {
		m, err := readMessage(in)
		if err != nil {
			return err
		}
		if m.kind != kindHave && m.kind != kindGone || !w.heard(m) {
			return errors.New("direct: the peer breaks the rules")
		}
	}
}
