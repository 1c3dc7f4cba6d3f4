package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
	"github.com/ipfs-stargz/ipfs-stargz/image/progress"
)

func pinCommand() *cobra.Command {
	var (
		client clientFlags
		name   string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "pin ipfs://CID",
		Short: "Keep an image on this node, all platforms of it, and fetch what is missing",
		Args:  oneArgument("ipfs://CID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := oci.ParseCID(args[0])
			if err != nil {
				return err
			}
			daemon, err := client.daemon()
			if err != nil {
				return err
			}
			defer daemon.Close()
			bars := progress.New(os.Stderr)
			task := bars.Task("fetch", 0)
			var blocks, bytes int64
			err = daemon.Pin(cmd.Context(), c, name, func(nowBlocks, nowBytes int64) {
				task.Add(max(0, nowBytes-bytes))
				blocks, bytes = nowBlocks, nowBytes
			})
			result := "pinned"
			if err != nil {
				result = "failed"
			}
			task.Done(result)
			bars.Close()
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), map[string]any{"cid": c.String(), "blocks": blocks, "fetched_bytes": bytes})
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), c)
			return err
		},
	}
	client.add(cmd)
	cmd.Flags().StringVar(&name, "name", "", "a `name` for people, shown by ls (default: the one it has)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func unpinCommand() *cobra.Command {
	var (
		client clientFlags
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "unpin ipfs://CID",
		Short: "No longer keep an image: its blocks go when room is needed, or by gc",
		Args:  oneArgument("ipfs://CID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := oci.ParseCID(args[0])
			if err != nil {
				return err
			}
			daemon, err := client.daemon()
			if err != nil {
				return err
			}
			defer daemon.Close()
			if err := daemon.Unpin(cmd.Context(), c); err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), map[string]any{"cid": c.String()})
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), c)
			return err
		},
	}
	client.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// writeJSON prints v for scripts and for people who ask for it.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
