// Package prefetch brings the objects of layers into the cache before anybody
// reads them: first, at once, what lies before a layer's landmark (its head),
// which is what an image's maker saw its containers read at their start; then
// all the rest, when no container reads.
//
// Its unit is one chunk. Before each it looks whether a container reads, and
// lets that go first: no more than Concurrency chunks, which are on their way
// by then, can be in a reader's way. A layer is gone through once, in the order
// of its blob. What is evicted afterwards is not fetched again until the
// layer's image is pulled or mounted again: prefetching and eviction must not
// chase each other.
package prefetch

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
)

// ErrBroken is wrapped by the errors of [Objects].Prefetch that trying again
// does not mend: the layer's own bytes are wrong, or the object is gone.
var ErrBroken = errors.New("object cannot be had")

// Object is one object of a layer.
type Object struct {
	Key    cache.Key
	Size   int64 // bytes
	Chunks int   // at least 1
}

// Layer is what a layer holds. Its objects have the numbers from 0 on.
type Layer interface {
	CID() string
	// Total returns how many objects there are, and the sum of their sizes.
	Total() (objects int, bytes int64)
	// Order returns the numbers of all objects as their contents follow one
	// another in the blob, with head only of those before the landmark.
	Order(head bool) []int32
	// Object returns the object with a number. ok is false when the layer is
	// gone.
	Object(number int32) (o Object, ok bool)
}

// Objects brings objects into the cache. It may be used by several goroutines
// at once.
type Objects interface {
	// Has reports whether an object is complete in the cache.
	Has(k cache.Key) bool
	// HasRoom reports whether n bytes fit into the cache without evicting
	// anything.
	HasRoom(n int64) bool
	// Prefetch brings one chunk of an object into the cache, behind all that
	// containers read. It joins what is on its way, and fetches nothing that is
	// here. kept is false when the cache could not take what was fetched.
	Prefetch(ctx context.Context, k cache.Key, chunk int) (kept bool, err error)
	// Quiet returns when no container reads and none has for d. Its error is
	// that of ctx.
	Quiet(ctx context.Context, d time.Duration) error
}

// Config is what a [Prefetcher] does. Its zero value does nothing.
type Config struct {
	Head        bool          // fetch what lies before the landmark when a layer is added
	Background  bool          // fetch the rest
	Rate        int64         // bytes per second of the rest, uncompressed; 0: no limit
	Concurrency int           // chunks at once, at least 1
	Quiet       time.Duration // for how long no container may have read before the rest goes on
}

// Prefetcher fetches what the layers that it was given still lack. It is safe
// for concurrent use, and none of its methods waits for the network.
type Prefetcher struct {
	cfg     Config
	objects Objects
	log     *slog.Logger
	pace    pace // of the goroutine that runs

	cancel  context.CancelFunc
	wg      sync.WaitGroup
	recount chan struct{} // holds one when there may be layers to count

	mu     sync.Mutex
	layers map[string]*work   // by CID
	stamp  int64              // counts what is added, used and taken
	wake   context.CancelFunc // ends what the goroutine that runs waits for
	probes int                // chunks under way of layers that failed
	room   room

	backSince time.Time // since when it waits for containers to have read; else zero
	asked     time.Time // when somebody last asked for the progress
}

// New starts a prefetcher without layers. cfg.Concurrency counts as 1 at least.
func New(cfg Config, objects Objects, log *slog.Logger) *Prefetcher {
	cfg.Concurrency = max(cfg.Concurrency, 1)
	ctx, cancel := context.WithCancel(context.Background())
	p := &Prefetcher{
		cfg: cfg, objects: objects, log: log, cancel: cancel,
		pace:    pace{rate: cfg.Rate},
		recount: make(chan struct{}, 1), layers: map[string]*work{}, wake: func() {},
	}
	p.wg.Go(func() { p.run(ctx) })
	p.wg.Go(func() { p.count(ctx) })
	return p
}

// Close stops what is under way, and returns when it has stopped.
func (p *Prefetcher) Close() {
	p.cancel()
	p.mu.Lock()
	for _, w := range p.layers {
		w.cancel()
	}
	clear(p.layers)
	p.mu.Unlock()
	p.wg.Wait()
}

// Add has layers prefetched: their heads first, all at the same pace, then the
// rest, the latest added or used layers first. A layer that was done starts
// again with what it lacks.
func (p *Prefetcher) Add(layers ...Layer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stamp++
	for _, l := range layers {
		w := p.layers[l.CID()]
		if w == nil {
			w = newWork(l)
			p.layers[l.CID()] = w
		}
		w.used = p.stamp
		switch {
		case w.stage != stageDone:
		case p.cfg.Head:
			w.stage = stageHead
		case p.cfg.Background:
			w.stage = stageRest
		}
	}
	p.changed()
}

// Use says that an image with these layers is being mounted: they go before
// those of others, and what was evicted of them is fetched again.
func (p *Prefetcher) Use(cids []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stamp++
	for _, cid := range cids {
		w := p.layers[cid]
		if w == nil {
			continue
		}
		w.used = p.stamp
		if w.stage == stageDone && p.cfg.Background && !w.tally.complete() {
			w.stage = stageRest
		}
	}
	p.changed()
}

// Retain forgets all layers but those with these CIDs. What is under way of
// them stops.
func (p *Prefetcher) Retain(cids []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for cid, w := range p.layers {
		if !slices.Contains(cids, cid) {
			w.cancel()
			delete(p.layers, cid)
		}
	}
	p.changed()
}

// changed has what is waiting look again at what there is to do. p.mu is held.
func (p *Prefetcher) changed() {
	p.wake()
	p.poke()
}

// poke has the goroutine that counts look for what there is to count.
func (p *Prefetcher) poke() {
	select {
	case p.recount <- struct{}{}:
	default:
	}
}
