package serve

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// argCID reads the one argument of a command: a CID, or a path of one.
func argCID(q url.Values) (cid.Cid, error) {
	args := q["arg"]
	if len(args) != 1 {
		return cid.Undef, fmt.Errorf("%w: want one arg, the CID", errUsage)
	}
	s := strings.TrimPrefix(strings.TrimPrefix(args[0], "ipfs://"), "/ipfs/")
	if strings.Contains(s, "/") {
		return cid.Undef, fmt.Errorf("%w: %q: paths below a CID are not resolved here", errUsage, args[0])
	}
	c, err := cid.Decode(s)
	if err != nil {
		return cid.Undef, fmt.Errorf("%w: %q is no CID: %w", errUsage, args[0], err)
	}
	return c, nil
}

func (h *handler) block(ctx context.Context, q url.Values) (cid.Cid, []byte, error) {
	c, err := argCID(q)
	if err != nil {
		return c, nil, err
	}
	var data []byte
	err = h.Store.Get(ctx, ipfs.Want{CIDs: []cid.Cid{c}}, func(_ cid.Cid, d []byte) error {
		data = bytes.Clone(d)
		return nil
	})
	return c, data, err
}

func (h *handler) blockGet(w http.ResponseWriter, r *http.Request) error {
	_, data, err := h.block(r.Context(), r.URL.Query())
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	_, err = w.Write(data)
	return err
}

// blockKey is the answer of block/stat and block/put.
type blockKey struct {
	Key  string
	Size int // bytes
}

func (h *handler) blockStat(w http.ResponseWriter, r *http.Request) error {
	c, data, err := h.block(r.Context(), r.URL.Query())
	if err != nil {
		return err
	}
	return h.reply(w, blockKey{c.String(), len(data)})
}

// blockPut stores the files of a form, each a block. Of Kubo's options it has
// cid-codec, as raw (the default) or dag-pb.
func (h *handler) blockPut(w http.ResponseWriter, r *http.Request) error {
	prefix := cid.NewPrefixV1(cid.Raw, multihash.SHA2_256)
	switch codec := r.URL.Query().Get("cid-codec"); codec {
	case "", "raw":
	case "dag-pb":
		prefix.Codec = cid.DagProtobuf
	default:
		return fmt.Errorf("%w: cid-codec %q: want raw or dag-pb", errUsage, codec)
	}
	if t := r.URL.Query().Get("mhtype"); t != "" && t != "sha2-256" {
		return fmt.Errorf("%w: mhtype %q: want sha2-256", errUsage, t)
	}
	var done []blockKey
	err := eachFile(r, func(file io.Reader) error {
		data, err := io.ReadAll(io.LimitReader(file, ipfs.MaxBlockSize+1))
		if err != nil {
			return err
		}
		c, err := prefix.Sum(data)
		if err != nil {
			return err
		}
		b, err := blocks.NewBlockWithCid(data, c)
		if err != nil {
			return err
		}
		done = append(done, blockKey{c.String(), len(data)})
		return h.Store.Put(r.Context(), b) // refuses what is too large
	})
	if err == nil {
		err = h.Store.Sync(r.Context())
	}
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	for _, k := range done {
		h.encode(w, k)
	}
	return nil
}

// eachFile calls fn for each file of a form as it arrives.
func eachFile(r *http.Request, fn func(file io.Reader) error) error {
	form, err := r.MultipartReader()
	if err != nil {
		return fmt.Errorf("%w: want a multipart form with a file: %w", errUsage, err)
	}
	for n := 0; ; n++ {
		part, err := form.NextPart()
		if err == io.EOF && n > 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: file %d of the form: %w", errUsage, n+1, err)
		}
		if err := fn(part); err != nil {
			return err
		}
	}
}

// cat sends a range of a UnixFS file: arg, offset, length.
func (h *handler) cat(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	c, err := argCID(q)
	if err != nil {
		return err
	}
	offset, err := count(q, "offset", 0)
	if err != nil {
		return err
	}
	length, err := count(q, "length", math.MaxInt64)
	if err != nil {
		return err
	}
	f, err := ipfs.OpenFile(r.Context(), h.Store, "", c, math.MaxInt64)
	if err != nil {
		return err
	}
	offset = min(offset, f.Size()) // from beyond the end on there is nothing, and that is no error
	length = min(length, f.Size()-offset)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("X-Content-Length", strconv.FormatInt(length, 10))
	w.Header().Set("Trailer", streamError)
	return f.Copy(r.Context(), w, offset, length)
}

// count reads a number of bytes.
func count(q url.Values, name string, none int64) (int64, error) {
	s := q.Get(name)
	if s == "" {
		return none, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%w: %s %q: want a number of bytes", errUsage, name, s)
	}
	return n, nil
}
