package serve

import (
	"bufio"
	"net/http"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/car"
)

// exportBuffer gathers the small writes of a CAR, in bytes.
const exportBuffer = 256 << 10

// dagExport sends a CAR of version 1 of all that its arg consists of: one DAG,
// or those of an image. What is not here is fetched.
func (h *handler) dagExport(w http.ResponseWriter, r *http.Request) error {
	root, err := argCID(r.URL.Query())
	if err != nil {
		return err
	}
	parts, err := h.parts(r.Context(), h.Store, root)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/vnd.ipld.car; version=1")
	w.Header().Set("Trailer", streamError)
	out := bufio.NewWriterSize(w, exportBuffer)
	if err := car.Write(r.Context(), h.Store, root, parts, ipfs.Want{Bulk: true}, out); err != nil {
		return err // what is in the buffer is part of nothing whole
	}
	return out.Flush()
}
