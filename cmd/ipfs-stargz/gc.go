package main

import (
	"context"
	"fmt"
	"io"
	"math"

	"github.com/docker/go-units"
	"github.com/ipfs/go-cid"
	"github.com/spf13/cobra"

	"github.com/ipfs-stargz/ipfs-stargz/image/progress"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
)

// collected is what gc did.
type collected struct {
	Blocks int64  `json:"freed_blocks"`
	Bytes  int64  `json:"freed_bytes"`
	Held   int64  `json:"held_bytes"`            // afterwards
	Limit  uint64 `json:"limit_bytes,omitempty"` // what may be held; none: no limit
}

func gcCommand() *cobra.Command {
	var (
		client clientFlags
		to     string
	)
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove the blocks that nothing pins, those first that were not used for longest",
		Long: `Remove the blocks that nothing pins: all of them, or with --to those that were
not used for longest, until the node holds no more than that. The node does this
by itself when its budget is used up. Images that run go on running, and what
they read of what was removed is fetched again. Blocks of a push under way stay.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			target, err := units.RAMInBytes(to)
			if err != nil || target < 0 {
				return fmt.Errorf("--to %q: want a size, such as 10GiB", to)
			}
			return client.with(func(daemon *kubo.Client) error {
				done, err := collect(cmd.Context(), daemon, target)
				if err != nil {
					return err
				}
				return client.print(cmd, done, done.write)
			})
		},
	}
	client.add(cmd)
	cmd.Flags().StringVar(&to, "to", "0", "stop when no more than this `size` is held")
	client.addJSON(cmd)
	return cmd
}

func collect(ctx context.Context, daemon *kubo.Client, target int64) (done collected, err error) {
	err = daemon.GC(ctx, target, func(_ cid.Cid, size int64) {
		done.Blocks++
		done.Bytes += size
	})
	if err != nil {
		return done, err
	}
	st, err := daemon.RepoStat(ctx)
	if err != nil {
		return done, err
	}
	done.Held = st.RepoSize
	if st.StorageMax < math.MaxUint64 {
		done.Limit = st.StorageMax
	}
	return done, nil
}

func (c collected) write(w io.Writer) error {
	_, err := fmt.Fprintf(w, "freed %s in %d blocks; %s are held\n", progress.Bytes(c.Bytes), c.Blocks, progress.Bytes(c.Held))
	return err
}
