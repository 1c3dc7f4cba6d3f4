package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
)

// peers is whom a running daemon talks to, and whom it refuses to.
type peers struct {
	Connected []ipfs.Peer `json:"connected"`
	Banned    []ipfs.Ban  `json:"banned"`
}

func peersCommand() *cobra.Command {
	var (
		client  clientFlags
		forgive string
	)
	cmd := &cobra.Command{
		Use:   "peers",
		Short: "Tell which peers are connected and how they are known, and which are banned",
		Example: `  ipfs-stargz peers
  ipfs-stargz peers --forgive 12D3KooW...   # end a ban`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return client.with(func(daemon *kubo.Client) error {
				if forgive != "" {
					return daemon.Forgive(cmd.Context(), forgive)
				}
				var p peers
				var err, err2 error
				p.Connected, err = daemon.PeersKnown(cmd.Context())
				p.Banned, err2 = daemon.Bans(cmd.Context())
				if err := errors.Join(err, err2); err != nil {
					return err
				}
				return client.print(cmd, p, p.write)
			})
		},
	}
	client.add(cmd)
	client.addJSON(cmd)
	cmd.Flags().StringVar(&forgive, "forgive", "", "end the ban of this `peer` id")
	cmd.MarkFlagsMutuallyExclusive("json", "forgive")
	return cmd
}

func (p peers) write(w io.Writer) error {
	if len(p.Connected) == 0 {
		fmt.Fprintln(w, "nobody is connected")
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(p.Connected) > 0 {
		fmt.Fprintln(t, "PEER\tKNOWN\tLATENCY\tAGENT\tADDRESS")
		for _, x := range p.Connected {
			latency := "-"
			if x.Latency > 0 {
				latency = x.Latency.Round(10 * time.Microsecond).String()
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", x.ID, x.Known, latency, printable(x.Agent), x.Addr)
		}
	}
	if len(p.Banned) > 0 {
		fmt.Fprintln(t, "\nBANNED\tUNTIL\tREASON")
		for _, x := range p.Banned {
			fmt.Fprintf(t, "%s\t%s\t%s\n", x.ID, x.Until.Local().Format(time.DateTime), printable(x.Reason))
		}
	}
	return t.Flush()
}

// printable is a peer's text without what a terminal would take for commands.
func printable(s string) string {
	if s == "" {
		return "-"
	}
	const most = 60
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s[:min(len(s), most)])
}
