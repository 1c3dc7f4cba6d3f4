package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"strconv"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/car"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store/pins"
)

// What is read of a CAR but not stored yet is at most one batch for each
// processor, and one more.
const (
	batchBytes  = 4 << 20
	batchBlocks = 1024
)

// dagImport stores the blocks of CARs, the files of a form, as they stream in.
// Each block is verified; the first that is bad ends the import, and those
// before it stay for an hour, so that another try, or the rest of it, finds
// them. It answers when all are on stable storage, with a line for each root
// (unless pin-roots=false) and, if stats=true, their number.
//
// Roots are pinned, with all that they consist of, which has to be here by now:
// nothing is fetched. A root that is a part of one before it is not pinned by
// itself.
func (h *handler) dagImport(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	pin, err := flag(q, "pin-roots", true)
	if err != nil {
		return err
	}
	withStats, err := flag(q, "stats", false)
	if err != nil {
		return err
	}
	silent, err := flag(q, "silent", false)
	if err != nil {
		return err
	}
	im := importer{store: h.Store}
	if err := eachFile(r, func(file io.Reader) error { return im.file(r.Context(), file) }); err != nil {
		return err
	}
	// A disk can take its time to sync.
	return h.lines(w, r, func() any { return nil }, func(ctx context.Context, emit func(any) error) error {
		if silent {
			emit = func(any) error { return nil }
		}
		if err := h.Store.Sync(ctx); err != nil {
			return err
		}
		if pin {
			kept := make(map[string]bool) // multihashes
			for _, root := range im.roots {
				if err := errors.Join(ctx.Err(), emit(h.pinRoot(ctx, root, kept))); err != nil {
					return err
				}
			}
		}
		if !withStats {
			return nil
		}
		return emit(map[string]any{"Stats": map[string]int64{"BlockCount": im.blocks, "BlockBytesCount": im.bytes}})
	})
}

// rootLine is what dag/import says of a root.
type rootLine struct {
	Root struct {
		Cid         link
		PinErrorMsg string
	}
}

// link is how dag-json writes a CID.
type link map[string]string

func linkTo(c cid.Cid) link { return link{"/": c.String()} }

// pinRoot pins a root, unless it is among those kept already, and adds its
// parts to these.
func (h *handler) pinRoot(ctx context.Context, root cid.Cid, kept map[string]bool) (line rootLine) {
	line.Root.Cid = linkTo(root)
	if kept[string(root.Hash())] {
		return line
	}
	parts, err := h.parts(ctx, h.Repo.Local(), root)
	if err == nil {
		_, err = h.Pins.Pin(ctx, pins.Pin{Root: root, Name: h.nameOf(ctx, root), Parts: parts})
	}
	if err != nil {
		line.Root.PinErrorMsg = "not pinned: " + err.Error()
		var unavailable *ipfs.UnavailableError
		var missing *store.MissingError
		if errors.As(err, &unavailable) || errors.As(err, &missing) {
			line.Root.PinErrorMsg = "it is not whole in the CAR, nor with the rest in the node: " + err.Error()
		}
		return line
	}
	for _, p := range parts {
		kept[string(p.Hash())] = true
	}
	return line
}

func flag(q url.Values, name string, none bool) (bool, error) {
	if !q.Has(name) {
		return none, nil
	}
	v, err := strconv.ParseBool(q.Get(name))
	if err != nil {
		return false, fmt.Errorf("%w: %s: %w", errUsage, name, err)
	}
	return v, nil
}

// importer stores the blocks of CARs in batches, several at a time, so that
// reading, hashing and writing overlap.
type importer struct {
	store         Store
	roots         []cid.Cid
	blocks, bytes int64
}

func (im *importer) file(ctx context.Context, file io.Reader) error {
	r, err := car.NewReader(file)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	im.roots = append(im.roots, r.Roots...)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	var batch []blocks.Block
	var size int
	send := func() {
		full := batch
		batch, size = nil, 0
		g.Go(func() error { return im.store.Put(ctx, full...) })
	}
	var readErr error
	for ctx.Err() == nil {
		b, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			readErr = fmt.Errorf("%w: %w", errUsage, err)
			break
		}
		im.blocks++
		im.bytes += int64(len(b.RawData()))
		batch = append(batch, b)
		if size += len(b.RawData()); size >= batchBytes || len(batch) == batchBlocks {
			send()
		}
	}
	if len(batch) > 0 && ctx.Err() == nil {
		send()
	}
	if err := g.Wait(); err != nil {
		if errors.Is(err, ipfs.ErrBadBlock) || errors.Is(err, ipfs.ErrTooLarge) || errors.Is(err, ipfs.ErrBadCID) {
			return fmt.Errorf("%w: CAR: %w", errUsage, err)
		}
		return err
	}
	return readErr
}
