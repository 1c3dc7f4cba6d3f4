package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/ipfs/go-cid"
	"github.com/spf13/cobra"

	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
	"github.com/ipfs-stargz/ipfs-stargz/image/progress"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
)

func pinCommand() *cobra.Command {
	var (
		client clientFlags
		name   string
	)
	cmd := &cobra.Command{
		Use:   "pin ipfs://CID",
		Short: "Keep an image on this node, all platforms of it, and fetch what is missing",
		Args:  oneArgument("ipfs://CID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withImage(&client, args[0], func(daemon *kubo.Client, c cid.Cid) error {
				blocks, bytes, err := pin(cmd.Context(), daemon, c, name)
				if err != nil {
					return err
				}
				return client.print(cmd, map[string]any{"cid": c.String(), "blocks": blocks, "fetched_bytes": bytes}, line(c))
			})
		},
	}
	client.add(cmd)
	cmd.Flags().StringVar(&name, "name", "", "a `name` for people, shown by ls (default: the one it has)")
	client.addJSON(cmd)
	return cmd
}

// withImage calls fn with a client of the daemon and the image of an argument.
func withImage(client *clientFlags, arg string, fn func(daemon *kubo.Client, c cid.Cid) error) error {
	c, err := oci.ParseCID(arg)
	if err != nil {
		return err
	}
	return client.with(func(daemon *kubo.Client) error { return fn(daemon, c) })
}

// pin has an image pinned, with a bar for what is fetched.
func pin(ctx context.Context, daemon *kubo.Client, c cid.Cid, name string) (blocks, bytes int64, err error) {
	bars := progress.New(os.Stderr)
	defer bars.Close()
	task := bars.Task("fetch", 0)
	err = daemon.Pin(ctx, c, name, func(nowBlocks, nowBytes int64) {
		task.Add(max(0, nowBytes-bytes))
		blocks, bytes = nowBlocks, nowBytes
	})
	result := "pinned"
	if err != nil {
		result = "failed"
	}
	task.Done(result)
	return blocks, bytes, err
}

func unpinCommand() *cobra.Command {
	var client clientFlags
	cmd := &cobra.Command{
		Use:   "unpin ipfs://CID",
		Short: "No longer keep an image: its blocks go when room is needed, or by gc",
		Args:  oneArgument("ipfs://CID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withImage(&client, args[0], func(daemon *kubo.Client, c cid.Cid) error {
				if err := daemon.Unpin(cmd.Context(), c); err != nil {
					return err
				}
				return client.print(cmd, map[string]any{"cid": c.String()}, line(c))
			})
		},
	}
	client.add(cmd)
	client.addJSON(cmd)
	return cmd
}

// line prints a CID on a line of its own.
func line(c cid.Cid) func(w io.Writer) error {
	return func(w io.Writer) error {
		_, err := fmt.Fprintln(w, c)
		return err
	}
}
