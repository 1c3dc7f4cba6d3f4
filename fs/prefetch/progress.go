package prefetch

import (
	"context"
	"slices"
	"strings"
	"time"
)

// LayerProgress is how far a layer is.
type LayerProgress struct {
	CID string
	// Objects and Bytes (uncompressed) are what of the layer is complete in
	// the cache, however it came there. What readers and eviction changed is
	// counted again when somebody asks and the last count is older than ten
	// seconds; the next answer has it.
	Objects, TotalObjects int
	Bytes, TotalBytes     int64
	Counted               bool // false until they were counted for the first time
	State                 State
	Reason                string // why the layer is [Waiting]
}

// State is what is done for a layer.
type State string

// The states of a layer.
const (
	Head       State = "head"       // what lies before the landmark is fetched
	Background State = "background" // the rest is fetched, or stands in line
	Waiting    State = "waiting"    // nothing is fetched just now: Reason says why
	Done       State = "done"       // all was fetched; not all is here if some was evicted or cannot be had
	Off        State = "off"        // what is missing is not fetched, by configuration
)

// countAge is how old a count may be when somebody asks.
const countAge = 10 * time.Second

// Progress returns how far each layer is, sorted by CID.
func (p *Prefetcher) Progress() []LayerProgress {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]LayerProgress, 0, len(p.layers))
	for _, w := range p.layers {
		l := w.tally.progress()
		l.CID = w.cid
		l.State, l.Reason = p.state(w)
		all = append(all, l)
	}
	slices.SortFunc(all, func(a, b LayerProgress) int { return strings.Compare(a.CID, b.CID) })
	p.asked = time.Now()
	p.poke()
	return all
}

// Count returns how many bytes of a layer (uncompressed) are in complete objects in
// the cache, and how many there are in all. What it says is of a moment ago: where
// that is not known it has the layer counted, this one alone, and waits for it
// until ctx ends. ok is false if there is no such layer.
func (p *Prefetcher) Count(ctx context.Context, cid string) (bytes, total int64, ok bool) {
	p.mu.Lock()
	w := p.layers[cid]
	p.mu.Unlock()
	if w == nil {
		return 0, 0, false
	}
	if counted := w.tally.stale(); counted != nil {
		p.poke()
		select {
		case <-counted:
		case <-w.ctx.Done():
		case <-ctx.Done():
		}
	}
	l := w.tally.progress()
	return l.Bytes, l.TotalBytes, true
}

func (t *tally) progress() LayerProgress {
	t.mu.Lock()
	defer t.mu.Unlock()
	return LayerProgress{
		Objects: t.objects, TotalObjects: t.total, Bytes: t.bytes, TotalBytes: t.totalBytes,
		Counted: !t.at.IsZero(),
	}
}

// noticeable is how long containers are waited for before that is told: each
// chunk asks whether they read.
const noticeable = 10 * time.Millisecond

// state is what is done for a layer just now. p.mu is held.
func (p *Prefetcher) state(w *work) (s State, reason string) {
	switch {
	case w.stage == stageDone && !p.cfg.Background && !w.tally.complete():
		return Off, ""
	case w.stage == stageDone:
		return Done, ""
	case w.failures > 0:
		return Waiting, w.err.Error()
	case p.room.reason != "":
		return Waiting, p.room.reason
	case !p.backSince.IsZero() && time.Since(p.backSince) >= noticeable:
		return Waiting, "containers read"
	case w.stage == stageHead:
		return Head, ""
	}
	return Background, ""
}
