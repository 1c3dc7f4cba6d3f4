package serve

import (
	"context"
	"math"
	"net/http"

	"github.com/ipfs/go-cid"
)

// repoStat tells how much the node holds, and may hold.
func (h *handler) repoStat(w http.ResponseWriter, _ *http.Request) error {
	st := h.Repo.Stat()
	most := uint64(st.Limit)
	if st.Limit == math.MaxInt64 {
		most = math.MaxUint64 // Kubo's way of saying that there is no limit
	}
	return h.reply(w, struct {
		RepoSize   int64
		StorageMax uint64
		NumObjects int64
		RepoPath   string
		Version    string
	}{st.Bytes, most, st.Blocks, "", "ipfs-stargz"})
}

// removedBlock is a line of repo/gc. Size is ours.
type removedBlock struct {
	Key  link
	Size int64 // bytes
}

// repoGC removes the blocks that nothing pins, a line for each unless
// silent=true. Our own argument to, in bytes, has it stop when the node holds
// no more than that; those that were not used for longest go first.
func (h *handler) repoGC(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	target, err := count(q, "to", 0)
	if err != nil {
		return err
	}
	silent, err := flag(q, "silent", false)
	if err != nil {
		return err
	}
	return h.lines(w, r, func() any { return nil }, func(ctx context.Context, emit func(any) error) error {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		_, err := h.Repo.Collect(ctx, target, func(c cid.Cid, size int64) {
			if silent {
				return
			}
			if err := emit(removedBlock{linkTo(c), size}); err != nil {
				cancel(err) // who asked has gone
			}
		})
		return err
	})
}
