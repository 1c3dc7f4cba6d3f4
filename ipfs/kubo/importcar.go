package kubo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"strconv"
	"sync"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipld/go-car/v2"
	carstorage "github.com/ipld/go-car/v2/storage"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/stall"
)

// noRoot is what a CAR names as its root when there is none yet: the empty
// identity CID. A CAR with an empty list of roots is refused by some readers.
var noRoot = cid.MustParse("bafkqaaa")

// ImportCAR gives the daemon the blocks that produce puts, as a CAR stream:
// a block is sent as it is put and not held here. put is safe for concurrent
// use and is what ipfs/importer puts blocks with.
//
// The daemon pins the roots, recursively, so all that they link to must be
// among the blocks or with the daemon already. Without roots the blocks are
// stored and not pinned: that is for parts of something whose root is not
// known yet, which a later call with that root pins.
//
// ImportCAR returns when the daemon has stored everything, or with the first
// error of produce, ctx or the daemon.
func (c *Client) ImportCAR(ctx context.Context, roots []cid.Cid, produce func(put ipfs.PutFunc) error) error {
	ctx, watch := stall.Start(ctx, c.timeout)
	defer watch.Stop()
	pr, pw := io.Pipe()
	form := multipart.NewWriter(pw)

	var producer sync.WaitGroup
	var produceErr error
	producer.Go(func() {
		produceErr = writeCAR(ctx, form, roots, func(put ipfs.PutFunc) error {
			return produce(func(ctx context.Context, b blocks.Block) error {
				// Time in which the producer makes a block is no stall.
				watch.Enter()
				defer watch.Leave()
				return put(ctx, b)
			})
		})
		watch.Enter() // from here on the answer is awaited
		pw.CloseWithError(produceErr)
	})

	resp, err := c.call(ctx, "dag/import", url.Values{
		"pin-roots": {strconv.FormatBool(len(roots) > 0)},
	}, pr, form.FormDataContentType())
	if err == nil {
		err = c.importReply(ctx, watch, resp, roots)
	}
	pr.CloseWithError(errImportOver) // whoever still produces learns it
	producer.Wait()
	if err != nil && (errors.Is(produceErr, errImportOver) || errors.Is(produceErr, io.ErrClosedPipe)) {
		return err // the producer only felt the daemon's end
	}
	if produceErr != nil {
		return produceErr
	}
	return err
}

// errImportOver is what a producer gets that goes on after the daemon's answer.
var errImportOver = errors.New("kubo: dag/import has ended")

// writeCAR writes the one part of the form: a CAR v1 of what produce puts.
func writeCAR(ctx context.Context, form *multipart.Writer, roots []cid.Cid, produce func(ipfs.PutFunc) error) error {
	part, err := form.CreateFormFile("path", "blocks.car")
	if err != nil {
		return err
	}
	if len(roots) == 0 {
		roots = []cid.Cid{noRoot}
	}
	w, err := carstorage.NewWritable(part, roots, car.WriteAsCarV1(true), car.UseWholeCIDs(true))
	if err != nil {
		return err
	}
	err = produce(func(pctx context.Context, b blocks.Block) error {
		if err := pctx.Err(); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return w.Put(ctx, b.Cid().KeyString(), b.RawData())
	})
	if err != nil {
		return err
	}
	if err := w.Finalize(); err != nil {
		return err
	}
	return form.Close()
}

// importReply reads the answer, a JSON value a line, and checks that every
// root was pinned.
func (c *Client) importReply(ctx context.Context, watch *stall.Watch, resp *http.Response, roots []cid.Cid) error {
	defer resp.Body.Close()
	missing := make(map[string]bool, len(roots))
	for _, r := range roots {
		missing[r.String()] = true
	}
	lines := json.NewDecoder(&touching{resp.Body, watch}) // our daemon sends an empty line while it syncs
	for {
		var line struct {
			Root *struct {
				Cid         map[string]string
				PinErrorMsg string
			}
		}
		err := lines.Decode(&line)
		if err == io.EOF {
			break
		}
		if err != nil {
			return c.failed(ctx, "dag/import", err)
		}
		if line.Root == nil {
			continue
		}
		root := line.Root.Cid["/"]
		if line.Root.PinErrorMsg != "" {
			return c.failed(ctx, "dag/import", fmt.Errorf("root %s was not pinned: %w", root, &Error{Message: line.Root.PinErrorMsg}))
		}
		delete(missing, root)
	}
	if msg := resp.Trailer.Get(streamErrorTrailer); msg != "" {
		return c.failed(ctx, "dag/import", &Error{Message: msg})
	}
	for root := range missing {
		return c.failed(ctx, "dag/import", fmt.Errorf("root %s was not acknowledged", root))
	}
	return nil
}
