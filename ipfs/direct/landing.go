package direct

import (
	"sync"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

// landing is a block that is here, and not in the store yet.
type landing struct {
	data  []byte
	users sync.WaitGroup // who found it; it grows while Exchange.mu is held
	kept  chan struct{}  // closed when it is stored
}

// take hands a block to those who want it, and then has it stored. Who waits for
// it need not wait for the disk; a Fetch in bulk ends when all of it is stored.
// Whoever asks for the block meanwhile is given it, too. x.mu is held, and let
// go; w may be nil.
func (x *Exchange) take(w *want, b blocks.Block, keep func(b blocks.Block)) {
	var waiting, bulk []*asker
	if w != nil && !w.over {
		for a := range w.askers {
			if a.bulk {
				bulk = append(bulk, a)
			} else {
				waiting = append(waiting, a)
			}
		}
		x.settle(w)
	}
	l := &landing{data: b.RawData(), kept: make(chan struct{})}
	x.landing[hash(b.Cid())] = l
	x.unlock()
	for _, a := range waiting {
		a.take(b.Cid(), l.data)
		x.given(a, w)
	}
	for _, a := range bulk {
		a.take(b.Cid(), l.data)
	}
	if keep != nil {
		keep(b)
	}
	x.mu.Lock()
	if x.landing[hash(b.Cid())] == l { // it may come two ways at once
		delete(x.landing, hash(b.Cid()))
	}
	x.unlock()
	x.inventory.added(b.Cid())
	close(l.kept)
	for _, a := range bulk {
		x.given(a, w)
	}
	l.users.Wait()
}

// stored hands over a block that was stored after its asker had looked, and
// before it was wanted here: nobody else would.
func (x *Exchange) stored(c cid.Cid) {
	// One that turns out to be damaged stays wanted.
	_ = x.Store.View(c, func(data []byte) error {
		b, err := blocks.NewBlockWithCid(data, c)
		if err != nil {
			return err
		}
		x.mu.Lock()
		x.take(x.wants[c], b, nil)
		return nil
	})
}

// take is called with each block that arrives. An error of give ends a.
func (a *asker) take(c cid.Cid, data []byte) {
	if err := a.offer(c, data); err != nil {
		a.end(err)
	}
}

// offer gives a a block, if it is not over. The error is that of give.
func (a *asker) offer(c cid.Cid, data []byte) error {
	a.ending.RLock()
	defer a.ending.RUnlock()
	if a.over {
		return nil
	}
	return a.give(c, data)
}

// given notes that a needs w no longer.
func (x *Exchange) given(a *asker, w *want) {
	x.mu.Lock()
	defer x.unlock()
	delete(a.wants, w)
	delete(a.told, w)
	if len(a.wants) == 0 {
		a.end(nil)
	}
}

// board gives a the blocks that were found landing, until give fails.
func (a *asker) board(found map[cid.Cid]*landing) (err error) {
	for c, l := range found {
		if err == nil {
			err = a.offer(c, l.data)
		}
		l.users.Done()
	}
	if a.bulk && err == nil {
		for _, l := range found {
			<-l.kept
		}
	}
	return err
}
