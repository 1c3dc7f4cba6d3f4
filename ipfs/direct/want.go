package direct

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// file is a file that is fetched now, or was a moment ago. Exchange.mu guards
// it, but for what is the shelf's.
type file struct {
	root   cid.Cid
	shelf  *shelf
	leaves []ipfs.Leaf    // as those of its shelf
	index  map[string]int // likewise
	users  int
	forget *time.Timer // when there is no user

	need    set     // parts that are wanted in bulk and nobody was asked for
	holders []int32 // of each part: how many peers told that they hold it
}

// partOf returns which part of the file a block is, if that is known, and how
// large it is (0: not known).
func (f *file) partOf(c cid.Cid) (part, size int, ok bool) {
	if c.Equals(f.root) {
		return 0, 0, true
	}
	part, ok = f.index[hash(c)]
	if ok {
		size = int(f.leaves[part-1].Size)
	}
	return part, size, ok
}

// change notes that one more (or less) peer holds a part.
func (f *file) change(part, by int) {
	for part >= len(f.holders) {
		f.holders = append(f.holders, 0)
	}
	f.holders[part] += int32(by)
}

// rarity is how many peers told that they hold a part.
func (f *file) rarity(part int) int {
	if part < len(f.holders) {
		return int(f.holders[part])
	}
	return 0
}

// want is one block that is wanted by someone. Exchange.mu guards it.
type want struct {
	cid   cid.Cid
	file  *file // nil: not known of what it is a part
	part  int   // of file; -1: not known which
	size  int   // bytes; a guess where it is not known
	since time.Time

	askers  map[*asker]bool
	waited  int // of these, how many wait for it
	flights map[*remote]*flight
	tried   map[*remote]time.Time // who was asked in vain, and until when that counts
	late    *time.Timer           // while it has flights: when to ask one more
	isLate  bool
	urgent  bool // counted in Exchange.urgent
	queued  bool
	over    bool
}

// inVain tells whether r was asked in vain, and need not be asked again yet.
func (w *want) inVain(r *remote, now time.Time) bool {
	until, tried := w.tried[r]
	return tried && (until.IsZero() || now.Before(until))
}

// asker is one Fetch.
type asker struct {
	bulk bool // nobody waits for it; Exchange.mu
	give func(c cid.Cid, data []byte) error
	lost func(c cid.Cid)

	wants map[*want]bool // not arrived; Exchange.mu guards it
	told  map[*want]bool // those it was told of as lost; likewise

	ending  sync.RWMutex // read-held while give is called
	over    bool
	endOnce sync.Once
	done    chan struct{} // closed when it is over: err says how
	err     error
}

func (a *asker) end(err error) {
	a.endOnce.Do(func() {
		a.err = err
		close(a.done)
	})
}

// guessSize is what a block is taken for whose size is not known.
const guessSize = 256 << 10

// lingerTime is for how long a file is watched after the last fetch.
const lingerTime = 30 * time.Second

// errClosed is returned by a Fetch of an exchange that has been closed.
var errClosed = errors.New("direct: closed")

// Fetch asks peers for blocks. give is called with each as it arrives,
// verified, and lent until give returns; several calls may be made at once, none
// after Fetch has returned.
// lost is called for each that no peer can give as things are; it stays wanted,
// and comes if that changes. Neither lost nor give may call the Exchange.
//
// Fetch returns when all have arrived (from a peer, or by [Exchange.Arrived]),
// with the first error of give, or with ctx.Err() when ctx ends.
func (x *Exchange) Fetch(ctx context.Context, w ipfs.Want, give func(c cid.Cid, data []byte) error, lost func(c cid.Cid)) error {
	a := &asker{
		bulk: w.Bulk, give: give, lost: lost, done: make(chan struct{}),
		wants: make(map[*want]bool, len(w.CIDs)), told: make(map[*want]bool),
	}
	f := x.use(w.Root)
	found := make(map[cid.Cid]*landing)
	x.mu.Lock()
	for _, c := range w.CIDs {
		if l := x.landing[hash(c)]; l != nil {
			if found[c] == nil {
				found[c] = l
				l.users.Add(1)
			}
			continue
		}
		x.want(a, f, c)
	}
	x.dispatch()
	idle := len(a.wants) == 0
	x.unlock()
	boarded := a.board(found)
	for _, c := range w.CIDs {
		if found[c] == nil && x.Store.Holds(c) {
			x.stored(c)
		}
	}
	if idle || boarded != nil {
		a.end(boarded)
	}
	err := x.await(ctx, a, w.Raised)
	if err == nil {
		err = boarded // all others may have been there before
	}
	a.ending.Lock() // waits for calls of give
	a.over = true
	a.ending.Unlock()
	x.mu.Lock()
	for want := range a.wants {
		x.drop(a, want)
	}
	if f != nil {
		x.leave(f)
	}
	x.dispatch()
	x.unlock()
	return err
}

// await returns when a is over, or ctx, or the exchange. When raised is closed
// before that, what a wants is waited for.
func (x *Exchange) await(ctx context.Context, a *asker, raised <-chan struct{}) error {
	for {
		select {
		case <-a.done:
			return a.err
		case <-raised:
			raised = nil
			x.raise(a)
		case <-ctx.Done():
			return ctx.Err()
		case <-x.ctx.Done():
			return errClosed
		}
	}
}

// raise makes a one that waits for what it wants.
func (x *Exchange) raise(a *asker) {
	x.mu.Lock()
	defer x.unlock()
	if !a.bulk {
		return
	}
	a.bulk = false
	for w := range a.wants {
		if !w.over {
			x.waitFor(w)
		}
	}
	x.dispatch()
}

// waitFor notes that one more waits for w. The first one has it go before all
// that nobody waits for, or be late sooner if it is on its way. Where it is lost,
// each one is told.
func (x *Exchange) waitFor(w *want) {
	w.waited++
	first := w.waited == 1
	switch {
	case len(w.flights) == 0:
		if first {
			w.queued = false // it may be in the queue of those that nobody waits for
		}
		x.place(w)
	case first:
		x.expect(w, w.soonest())
	}
}

// soonest is how long the quickest of those who were asked for w may take
// before somebody else is asked who waits for it.
func (w *want) soonest() time.Duration {
	least := maxPatience
	for r := range w.flights {
		least = min(least, r.meter.patience(r.ahead, w.size))
	}
	return least
}

// use returns the file under root, nil if that is undefined. Peers are asked
// about it from then on, until some time after leave.
func (x *Exchange) use(root cid.Cid) *file {
	if !root.Defined() {
		return nil
	}
	x.mu.Lock()
	f := x.files[root]
	if f == nil || f.leaves == nil {
		x.unlock()
		s := x.inventory.open(root) // reads the disk: once, if all is well
		x.mu.Lock()
		if f = x.files[root]; f == nil {
			f = &file{root: root, shelf: s}
			x.files[root] = f
			for _, r := range x.remotes {
				x.ask(r, f)
			}
		} else {
			defer x.inventory.release(s)
		}
		f.leaves, f.index = x.inventory.leaves(s)
	}
	defer x.unlock()
	f.users++
	if f.forget != nil {
		f.forget.Stop()
		f.forget = nil
	}
	return f
}

// leave ends a use. The file is watched for a while still: the next read of it
// is often not far.
func (x *Exchange) leave(f *file) {
	if f.users--; f.users > 0 {
		return
	}
	f.forget = time.AfterFunc(lingerTime, func() {
		x.mu.Lock()
		defer x.unlock()
		if f.users > 0 || x.files[f.root] != f {
			return
		}
		delete(x.files, f.root)
		for _, r := range x.remotes {
			x.forget(r, f)
		}
		x.inventory.release(f.shelf)
	})
}

// want notes that a wants a block.
func (x *Exchange) want(a *asker, f *file, c cid.Cid) {
	w := x.wants[c]
	if w == nil {
		w = &want{
			cid: c, file: f, part: -1, size: guessSize, since: time.Now(),
			askers: make(map[*asker]bool), flights: make(map[*remote]*flight), tried: make(map[*remote]time.Time),
		}
		if f != nil {
			if part, size, ok := f.partOf(c); ok {
				w.part = part
				w.size = cmp.Or(size, w.size)
			}
		}
		x.wants[c] = w
	}
	if w.askers[a] {
		return
	}
	w.askers[a], a.wants[w] = true, true
	switch {
	case !a.bulk:
		x.waitFor(w)
	case len(w.flights) == 0:
		x.place(w)
	}
}

// drop notes that a does not want a block any more.
func (x *Exchange) drop(a *asker, w *want) {
	delete(a.wants, w)
	delete(a.told, w)
	delete(w.askers, a)
	if w.over {
		return
	}
	if !a.bulk {
		w.waited--
	}
	if len(w.askers) == 0 {
		x.settle(w)
	} else {
		x.hurry(w)
	}
}

// settle ends a want: the block is here, or nobody wants it.
func (x *Exchange) settle(w *want) {
	w.over = true
	delete(x.wants, w.cid)
	if w.file != nil && w.part >= 0 {
		w.file.need.remove(w.part)
	}
	if w.late != nil {
		w.late.Stop()
	}
	for _, fl := range w.flights {
		fl.cancel()
	}
	x.hurry(w)
}

// Arrived tells of a block that came another way, or was put here: who waits
// for it gets it, and who watches is told. keep, if not nil, stores it.
func (x *Exchange) Arrived(b blocks.Block, keep func(b blocks.Block)) {
	x.mu.Lock()
	x.take(x.wants[b.Cid()], b, keep)
	x.mu.Lock()
	x.dispatch()
	x.unlock()
}

// Removed tells of blocks that are held no longer.
func (x *Exchange) Removed(cids ...cid.Cid) {
	for _, c := range cids {
		x.inventory.removed(c)
	}
}
