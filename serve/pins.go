package serve

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store/pins"
)

// pinRounds is how often a pin fetches what is missing: a block may be evicted,
// or prove damaged, between the fetch and the pin.
const pinRounds = 3

// argCIDs reads the arguments of a command that takes several.
func argCIDs(q url.Values) ([]cid.Cid, error) {
	var cids []cid.Cid
	for _, arg := range q["arg"] {
		c, err := argCID(url.Values{"arg": {arg}})
		if err != nil {
			return nil, err
		}
		cids = append(cids, c)
	}
	if len(cids) == 0 {
		return nil, fmt.Errorf("%w: want an arg, the CID", errUsage)
	}
	return cids, nil
}

// parts lists the DAGs that make up what root names.
func (h *handler) parts(ctx context.Context, blocks ipfs.Blocks, root cid.Cid) ([]cid.Cid, error) {
	if h.Parts == nil {
		return []cid.Cid{root}, nil
	}
	return h.Parts(ctx, blocks, root)
}

// pinAdd pins what each arg names, with all that it consists of, and fetches
// what is missing. With progress=true it says every second how far it is; name
// gives the pins a name.
func (h *handler) pinAdd(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	roots, err := argCIDs(q)
	if err != nil {
		return err
	}
	recursive, err := flag(q, "recursive", true)
	if err != nil {
		return err
	}
	if !recursive {
		return fmt.Errorf("%w: a pin keeps all blocks of what it names; recursive=false is not supported", errUsage)
	}
	progress, err := flag(q, "progress", false)
	if err != nil {
		return err
	}
	name := q.Get("name")
	if len(name) > pins.MaxName {
		return fmt.Errorf("%w: the name has %d bytes, at most %d", errUsage, len(name), pins.MaxName)
	}
	var f fetch
	beat := func() any { return nil }
	if progress {
		beat = func() any {
			return struct {
				Progress int64 // blocks that are here
				Bytes    int64 // of these
			}{f.blocks.Load(), f.bytes.Load()}
		}
	}
	return h.lines(w, r, beat, func(ctx context.Context, emit func(any) error) error {
		done := struct{ Pins []string }{[]string{}}
		for _, root := range roots {
			if err := h.pin(ctx, root, name, &f); err != nil {
				return err
			}
			done.Pins = append(done.Pins, root.String())
		}
		if progress {
			if err := emit(beat()); err != nil {
				return err
			}
		}
		return emit(done)
	})
}

// pin fetches what root consists of, and pins it. Without a name one that it
// has stays.
func (h *handler) pin(ctx context.Context, root cid.Cid, name string, f *fetch) error {
	parts, err := h.parts(ctx, h.Store, root)
	if err != nil {
		return err
	}
	if name == "" {
		name = h.nameOf(ctx, root)
	}
	for round := 1; ; round++ {
		if err := f.run(ctx, h, parts); err != nil {
			return fmt.Errorf("pin %s: %w", root, err)
		}
		_, err := h.Pins.Pin(ctx, pins.Pin{Root: root, Name: name, Parts: parts})
		var missing *store.MissingError
		if !errors.As(err, &missing) || round == pinRounds {
			if missing != nil {
				return fmt.Errorf("pin %s: it was fetched, and cannot be kept; is the disk or the budget (ipfs.budget) full? %w", root, err)
			}
			return err
		}
	}
}

// nameOf returns the name of a pin; "" if there is none.
func (h *handler) nameOf(ctx context.Context, root cid.Cid) string {
	list, err := h.Pins.Pins(ctx)
	if err != nil {
		return ""
	}
	for _, p := range list {
		if sameDAG(p.Root, root) {
			return p.Name
		}
	}
	return ""
}

func sameDAG(a, b cid.Cid) bool {
	return a.Type() == b.Type() && string(a.Hash()) == string(b.Hash())
}

// pinRm takes pins away.
func (h *handler) pinRm(w http.ResponseWriter, r *http.Request) error {
	roots, err := argCIDs(r.URL.Query())
	if err != nil {
		return err
	}
	done := struct{ Pins []string }{[]string{}}
	for _, root := range roots {
		err := h.Pins.Unpin(r.Context(), root)
		if errors.Is(err, pins.ErrNotPinned) {
			err = fmt.Errorf("%s is not pinned or pinned indirectly: %w; `ipfs-stargz ls` lists what is", root, pins.ErrNotPinned)
		}
		if err != nil {
			return err
		}
		done.Pins = append(done.Pins, root.String())
	}
	return h.reply(w, done)
}

// pinned is what pin/ls says of a pin. Behind Kubo's own fields come ours, with
// size=true.
type pinned struct {
	Cid  string `json:",omitempty"` // with stream=true
	Type string
	Name string

	Size   *int64    `json:",omitempty"` // bytes
	Held   *int64    `json:",omitempty"` // bytes of these that are here
	Blocks int       `json:",omitempty"`
	Time   time.Time `json:",omitzero"`
	Error  string    `json:",omitempty"` // the pin is damaged
}

// pinLs lists the pins, or those of the args. All of them are recursive: what
// is within one is listed for an arg alone.
func (h *handler) pinLs(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	stream, err := flag(q, "stream", false)
	if err != nil {
		return err
	}
	size, err := flag(q, "size", false)
	if err != nil {
		return err
	}
	list, err := h.listed(r.Context(), q)
	if err != nil {
		return err
	}
	keys := make(map[string]pinned, len(list))
	for _, p := range list {
		line := pinned{Type: p.through, Name: p.Name}
		if size {
			line.Size, line.Blocks, line.Time = &p.Bytes, p.Blocks, p.Time
			if p.Err != nil {
				line.Error = p.Err.Error()
			}
			held, err := h.Pins.Held(r.Context(), p.Pin)
			if err != nil {
				return err
			}
			line.Held = &held
		}
		if !stream {
			keys[p.as.String()] = line
			continue
		}
		line.Cid = p.as.String()
		w.Header().Set("Content-Type", "application/json")
		h.encode(w, line)
	}
	if stream {
		return nil
	}
	return h.reply(w, struct{ Keys map[string]pinned }{keys})
}

// listing is a pin, and what it is listed for.
type listing struct {
	pins.Pin
	as      cid.Cid
	through string // Kubo's type
}

func (h *handler) listed(ctx context.Context, q url.Values) ([]listing, error) {
	switch t := q.Get("type"); t {
	case "", "all", "recursive":
	case "direct", "indirect":
		return nil, nil
	default:
		return nil, fmt.Errorf("%w: type %q: want all or recursive", errUsage, t)
	}
	all, err := h.Pins.Pins(ctx)
	if err != nil {
		return nil, err
	}
	var list []listing
	if !q.Has("arg") {
		for _, p := range all {
			list = append(list, listing{p, p.Root, "recursive"})
		}
		return list, nil
	}
	args, err := argCIDs(q)
	if err != nil {
		return nil, err
	}
	for _, c := range args {
		is := func(p pins.Pin) bool { return sameDAG(p.Root, c) }
		within := func(p pins.Pin) bool {
			return slices.ContainsFunc(p.Parts, func(part cid.Cid) bool { return sameDAG(part, c) })
		}
		if i := slices.IndexFunc(all, is); i >= 0 {
			list = append(list, listing{all[i], c, "recursive"})
		} else if i := slices.IndexFunc(all, within); i >= 0 {
			list = append(list, listing{all[i], c, "indirect through " + all[i].Root.String()})
		} else {
			return nil, fmt.Errorf("%s is not pinned: %w", c, pins.ErrNotPinned)
		}
	}
	return list, nil
}

// fetch counts what a pin has fetched or found here.
type fetch struct{ blocks, bytes atomic.Int64 }
