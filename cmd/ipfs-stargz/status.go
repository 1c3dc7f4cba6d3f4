package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"text/tabwriter"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/ipfs-stargz/ipfs-stargz/fs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/chain"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/node"
)

// daemonState is what a running daemon says of itself.
type daemonState struct {
	Version   string   `json:"version"`
	PeerID    string   `json:"peer_id"`
	Addresses []string `json:"addresses"` // multiaddrs, with the peer id
	Peers     []string `json:"peers"`     // those connected, likewise

	Files fs.State `json:"files"`
	// Sources is what readers got from the node (its store, and its peers),
	// from a Kubo daemon and from gateways.
	Sources []chain.Given `json:"sources"`
	Blocks  blocksState   `json:"blocks"`
}

// blocksState is the node's store of blocks.
type blocksState struct {
	Bytes  int64 `json:"bytes"`
	Blocks int64 `json:"blocks"`
	Limit  int64 `json:"limit"` // bytes; the largest number for none
}

// stateOf returns what tells the daemon's state.
func stateOf(n *node.Node, files *fs.FS, from *sources) func() (daemonState, error) {
	return func() (daemonState, error) {
		s := daemonState{
			Version: version, PeerID: n.ID(), Addresses: n.Addrs(), Peers: n.PeersConnected(),
			Sources: from.given(), Blocks: blocksState(n.Local().Stat()),
		}
		if s.Peers == nil {
			s.Peers = []string{}
		}
		var err error
		s.Files, err = files.State()
		return s, err
	}
}

func statusCommand() *cobra.Command {
	var client clientFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell who the daemon is, whom it is connected to, and what of its images is here",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return client.with(func(daemon *kubo.Client) error {
				s, err := askStatus(cmd.Context(), daemon)
				if err != nil {
					return err
				}
				return client.print(cmd, s, s.write)
			})
		},
	}
	client.add(cmd)
	client.addJSON(cmd)
	return cmd
}

func askStatus(ctx context.Context, daemon *kubo.Client) (s daemonState, err error) {
	err = daemon.Status(ctx, &s)
	return s, err
}

func (s daemonState) write(w io.Writer) error {
	fmt.Fprintf(w, "version    %s\npeer       %s\n", s.Version, s.PeerID)
	for _, a := range s.Addresses {
		fmt.Fprintf(w, "address    %s\n", a)
	}
	for _, p := range s.Peers {
		fmt.Fprintf(w, "connected  %s\n", p)
	}
	if len(s.Peers) == 0 {
		fmt.Fprintln(w, "connected  to nobody (ipfs.peers in the configuration names nodes to connect to)")
	}
	f := s.Files
	fmt.Fprintf(w, "mode       %s: %s\n", f.Mode, f.Why)
	fmt.Fprintf(w, "cache      %s in %d files, %s\n", size(f.Cache.Bytes), f.Cache.Objects, ofLimit(f.Cache.Limit))
	fmt.Fprintf(w, "blocks     %s in %d, %s\n", size(s.Blocks.Bytes), s.Blocks.Blocks, ofLimit(s.Blocks.Limit))
	for _, g := range s.Sources {
		fmt.Fprintf(w, "source     %s gave %s in %d blocks\n", g.Source, size(g.Bytes), g.Blocks)
	}
	for _, r := range f.Requests {
		if r.Count > 0 {
			fmt.Fprintf(w, "met FUSE   %d times %s\n", r.Count, r.Kind)
		}
	}
	c := f.Chunks
	fmt.Fprintf(w, "fetched    %s waited for, %s read ahead, %s prefetched\n", size(c.Demand.Bytes), size(c.ReadAhead.Bytes), size(c.Prefetch.Bytes))
	if f.Cache.Damaged > 0 || c.Failures > 0 || c.CacheErrors > 0 {
		fmt.Fprintf(w, "trouble    %d damaged files removed, %d chunks not to be had, %d not to be kept (the log says more)\n", f.Cache.Damaged, c.Failures, c.CacheErrors)
	}
	if len(f.Images)+len(f.Layers) == 0 {
		return nil
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(tw, "\nIMAGE, LAYER\tHERE\tOF\tSTATE\n")
	layers := map[string]fs.Layer{}
	for _, l := range f.Layers {
		layers[l.CID] = l
	}
	shown := map[string]bool{}
	for _, im := range f.Images {
		state := "not mounted"
		if im.Mounted {
			state = "mounted"
		}
		fmt.Fprintf(tw, "%d layers\t%s\t%s\n", len(im.Layers), completion(im.Completion), state)
		for _, cid := range im.Layers {
			writeLayer(tw, "  ", layers[cid])
			shown[cid] = true
		}
	}
	for _, l := range f.Layers {
		if !shown[l.CID] {
			writeLayer(tw, "", l)
		}
	}
	return tw.Flush()
}

func writeLayer(w io.Writer, indent string, l fs.Layer) {
	state := string(l.Prefetch)
	if l.Reason != "" {
		state += ": " + l.Reason
	}
	fmt.Fprintf(w, "%s%s\t%s\t%s\n", indent, l.CID, completion(l.Completion), state)
}

// completion is two columns.
func completion(c fs.Completion) string {
	if !c.Counted {
		return "counting\t" + size(c.TotalBytes)
	}
	return fmt.Sprintf("%s\t%s", size(c.Bytes), size(c.TotalBytes))
}

func size(bytes int64) string { return units.BytesSize(float64(bytes)) }

func ofLimit(bytes int64) string {
	if bytes == math.MaxInt64 {
		return "without a limit"
	}
	return "of " + size(bytes)
}
