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
	"github.com/ipld/go-car/v2"
	"golang.org/x/sync/errgroup"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// Limits on a CAR. What is read of it but not stored yet is at most one batch
// for each processor, and one more.
const (
	carHeaderBytes  = 64 << 10 // about 1,700 roots
	carSectionBytes = ipfs.MaxBlockSize + 256
	batchBytes      = 4 << 20
	batchBlocks     = 1024
)

// dagImport stores the blocks of CARs, the files of a form, as they stream in.
// Each block is verified; the first that is bad ends the import, and those
// before it stay. It answers when all are on stable storage, with a line for
// each root (unless pin-roots=false) and, if stats=true, their number.
//
// A root is reported as pinned when its block is here. There is no garbage
// collection yet that a pin would hold off.
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
	if err := h.Store.Sync(r.Context()); err != nil {
		return err
	}
	var lines []any
	if pin && !silent {
		for _, root := range im.roots {
			line, err := h.pinned(r.Context(), root)
			if err != nil {
				return err
			}
			lines = append(lines, line)
		}
	}
	if withStats && !silent {
		lines = append(lines, map[string]any{"Stats": map[string]int64{"BlockCount": im.blocks, "BlockBytesCount": im.bytes}})
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Chunked-Output", "1")
	for _, l := range lines {
		h.encode(w, l)
	}
	return nil
}

// pinned is the line about a root.
func (h *handler) pinned(ctx context.Context, root cid.Cid) (any, error) {
	type link map[string]string
	line := struct {
		Root struct {
			Cid         link
			PinErrorMsg string
		}
	}{}
	line.Root.Cid = link{"/": root.String()}
	ok, err := h.Store.Has(ctx, root)
	if err != nil {
		return nil, err
	}
	if !ok {
		line.Root.PinErrorMsg = "the root's block is neither in the CAR nor in the node"
	}
	return line, nil
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
	r, err := car.NewBlockReader(file, car.WithTrustedCAR(true), // the store verifies
		car.MaxAllowedHeaderSize(carHeaderBytes), car.MaxAllowedSectionSize(carSectionBytes))
	if err != nil {
		return fmt.Errorf("%w: CAR: %w", errUsage, noEOF(err))
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
			readErr = fmt.Errorf("%w: CAR after %d blocks: %w", errUsage, im.blocks, err)
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

// noEOF makes of an end that came too early an error that says so.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
