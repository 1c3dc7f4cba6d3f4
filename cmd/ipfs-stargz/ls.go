package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ipfs-stargz/ipfs-stargz/image/progress"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
)

// kept is a pin as ls shows it.
type kept struct {
	CID    string    `json:"cid"`
	Name   string    `json:"name"`
	Size   int64     `json:"size_bytes"`
	Held   int64     `json:"held_bytes"` // of these, on this node
	Blocks int       `json:"blocks"`
	Time   time.Time `json:"time"`            // of the pinning
	Error  string    `json:"error,omitempty"` // the pin is damaged
}

func lsCommand() *cobra.Command {
	var client clientFlags
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List what is pinned on this node: images that were pushed, or pinned",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return client.with(func(daemon *kubo.Client) error {
				list, err := daemon.Pins(cmd.Context())
				if err != nil {
					return err
				}
				out := []kept{}
				for _, p := range list {
					out = append(out, kept{p.CID.String(), p.Name, p.Size, p.Held, p.Blocks, p.Time, p.Error})
				}
				return client.print(cmd, out, func(w io.Writer) error { return writePins(w, list) })
			})
		},
	}
	client.add(cmd)
	client.addJSON(cmd)
	return cmd
}

func writePins(w io.Writer, list []kubo.Pin) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(tw, "NAME\tCID\tSIZE\tHERE\tPINNED\n")
	for _, p := range list {
		name := p.Name
		if name == "" {
			name = "-"
		}
		size, here, when := "-", "-", "-" // as of a Kubo daemon, which tells no more
		if !p.Time.IsZero() {
			size, here, when = progress.Bytes(p.Size), progress.Bytes(p.Held), p.Time.Local().Format(time.DateTime)
		}
		if p.Error != "" {
			name = "(damaged: pin it again)"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", name, p.CID, size, here, when)
	}
	return tw.Flush()
}
