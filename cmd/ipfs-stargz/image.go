package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/ipfs-stargz/ipfs-stargz/config"
	"github.com/ipfs-stargz/ipfs-stargz/image"
	"github.com/ipfs-stargz/ipfs-stargz/image/progress"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
)

// clientFlags are those of the commands that talk to a daemon.
type clientFlags struct {
	config string
	api    string
	json   bool
}

func (f *clientFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.config, "config", config.DefaultPath, "the daemon's configuration `file`, to find it by")
	cmd.Flags().StringVar(&f.api, "api", "", "the daemon's `address`: a multiaddr or URL (default: from the configuration)")
}

// daemon returns a client of the daemon.
func (f *clientFlags) daemon() (*kubo.Client, error) {
	addr := f.api
	if addr == "" {
		cfg, err := config.Load(f.config)
		if err != nil {
			return nil, err
		}
		addr = "/unix" + cfg.API.Address
	}
	return kubo.New(addr)
}

// addJSON is for commands that print with [clientFlags.print].
func (f *clientFlags) addJSON(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON")
}

// with calls fn with a client of the daemon.
func (f *clientFlags) with(fn func(daemon *kubo.Client) error) error {
	daemon, err := f.daemon()
	if err != nil {
		return err
	}
	defer daemon.Close()
	return fn(daemon)
}

// print prints v as JSON, if that was asked for, or else as text does.
func (f *clientFlags) print(cmd *cobra.Command, v any, text func(w io.Writer) error) error {
	if !f.json {
		return text(cmd.OutOrStdout())
	}
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// containerdFlags are those of the commands that talk to containerd.
func containerdFlags(cmd *cobra.Command, c *image.Containerd) {
	address, namespace := image.DefaultContainerdAddress, image.DefaultContainerdNamespace
	if a := os.Getenv("CONTAINERD_ADDRESS"); a != "" {
		address = a
	}
	if n := os.Getenv("CONTAINERD_NAMESPACE"); n != "" {
		namespace = n
	}
	cmd.Flags().StringVar(&c.Address, "containerd-address", address, "containerd's socket")
	cmd.Flags().StringVarP(&c.Namespace, "namespace", "n", namespace, "containerd's namespace")
}

func pushCommand() *cobra.Command {
	var (
		client clientFlags
		opts   image.PushOptions
		run    runFlags
		car    string
		ipns   string
	)
	cmd := &cobra.Command{
		Use:   "push [--optimize] IMAGE [-- COMMAND...]",
		Short: "Put an image into IPFS; the last line of output is its CID",
		Long: `Put an image into IPFS, its layers as eStargz. IMAGE is the name of an image
in containerd, or an OCI archive or layout directory (oci-archive:FILE, oci:DIR,
or just its path). The last line of standard output is the CID alone.

With --optimize the image is run once before, in containerd and without a
network, with COMMAND or its own. What it opens comes first in its layers, in
that order, up to a landmark: it is fetched together when the image is pulled.
A container that does not end, such as a server's, is stopped after a while.`,
		Example: `  ipfs-stargz push docker.io/library/python:3.13
  ipfs-stargz push --all-platforms oci-archive:image.tar
  ipfs-stargz push --optimize docker.io/library/python:3.13 -- python3 -c 'import json'`,
		Args: run.checkArguments,
		RunE: func(cmd *cobra.Command, args []string) error {
			daemon, err := client.daemon()
			if err != nil {
				return err
			}
			defer daemon.Close()
			opts.Image, opts.Daemon, opts.Optimize = args[0], daemon, run.optimize(args[1:])
			opts.Progress = progress.New(os.Stderr)
			result, err := image.Push(cmd.Context(), opts)
			opts.Progress.Close()
			if err != nil {
				return err
			}
			if opts.Optimize != nil {
				fmt.Fprintln(os.Stderr, result.Optimized)
			}
			fmt.Fprintf(os.Stderr, "%d blobs, %s, in %v: %d layers converted, %d kept, %d not lazy\n",
				result.Blobs, progress.Bytes(result.Bytes), result.Took.Round(time.Millisecond),
				result.Converted, result.Kept, result.Plain)
			if err := afterPush(cmd.Context(), daemon, result.CID, args[0], car); err != nil {
				return err
			}
			if ipns != "" {
				if err := publishName(cmd.Context(), daemon, ipns, result.CID.String()); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), result.CID)
			return err
		},
	}
	client.add(cmd)
	containerdFlags(cmd, &opts.Containerd)
	f := cmd.Flags()
	f.StringSliceVar(&opts.Platforms, "platform", nil, "`platforms` to push of an image with several (default: this machine's)")
	f.BoolVar(&opts.AllPlatforms, "all-platforms", false, "push all of them")
	f.StringVar(&opts.Output, "output", "", "write the pushed image to this OCI archive `file` too")
	f.StringVar((*string)(&opts.Profile), "profile", "",
		fmt.Sprintf("cut blobs into blocks by this `profile` (%s), whose CIDs other tools give too, and not at their files", importer.UnixFS2025))
	run.add(f)
	f.StringVar(&car, "car", "", "write all that the image needs to this CAR `file` too, for pull --car")
	f.StringVar(&ipns, "ipns", "", "have the IPNS name of this `key` stand for the image; the key is made the first time")
	f.StringVar(&opts.TempDir, "temp-dir", "", "`directory` for converted layers during the push (default: the system's)")
	cmd.MarkFlagsMutuallyExclusive("platform", "all-platforms")
	cmd.MarkFlagsMutuallyExclusive("platform", "optimize")
	return cmd
}

func pullCommand() *cobra.Command {
	var (
		client clientFlags
		opts   image.PullOptions
		car    string
	)
	cmd := &cobra.Command{
		Use:   "pull {ipfs://CID | ipns://NAME | --car FILE}",
		Short: "Make an image of IPFS an image of containerd, without waiting for its layers",
		Example: `  ipfs-stargz pull ipfs://bafkrei...
  ipfs-stargz pull ipns://k51...             # what push --ipns KEY published last
  ctr run --rm -t --snapshotter ipfs-stargz bafkrei... demo python3
  ipfs-stargz pull --car image.car`,
		Args: func(cmd *cobra.Command, args []string) error {
			if car != "" && len(args) == 0 {
				return nil
			}
			return oneArgument("ipfs://CID or ipns://NAME")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			daemon, err := client.daemon()
			if err != nil {
				return err
			}
			defer daemon.Close()
			opts.Daemon = daemon
			if opts.Ref, err = pullRef(cmd.Context(), daemon, args, car); err != nil {
				return err
			}
			if opts.Ref, err = resolveName(cmd.Context(), daemon, opts.Ref); err != nil {
				return err
			}
			opts.Progress = progress.New(os.Stderr)
			result, err := image.Pull(cmd.Context(), opts)
			opts.Progress.Close()
			if err != nil {
				return err
			}
			fmt.Fprintf(os.Stderr, "resolve %v, describe %v, mount %v: %d layers, %d of them fetched whole, %s fetched\n",
				result.Resolve.Round(time.Millisecond), result.Metadata.Round(time.Millisecond), result.Unpack.Round(time.Millisecond),
				result.Layers, result.FetchedFull, progress.Bytes(result.FetchedBytes))
			_, err = fmt.Fprintln(cmd.OutOrStdout(), result.Name)
			return err
		},
	}
	client.add(cmd)
	containerdFlags(cmd, &opts.Containerd)
	f := cmd.Flags()
	f.StringVar(&car, "car", "", "import the image from this CAR `file`, as push --car wrote it, and pin it")
	f.StringVar(&opts.Name, "name", "", "the image's `name` in containerd (default: its CID)")
	f.StringVar(&opts.Platform, "platform", "", "`platform` to pull of an image with several (default: this machine's)")
	f.StringVar(&opts.Snapshotter, "snapshotter", image.DefaultSnapshotter, "our `name` in containerd's configuration")
	return cmd
}

func inspectCommand() *cobra.Command {
	var client clientFlags
	cmd := &cobra.Command{
		Use:   "inspect CID",
		Short: "Tell what an image in IPFS consists of, and whether its layers are lazy",
		Args:  oneArgument("CID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return client.with(func(daemon *kubo.Client) error {
				report, err := image.Inspect(cmd.Context(), daemon, args[0])
				if err != nil {
					return err
				}
				return client.print(cmd, report, report.WriteText)
			})
		},
	}
	client.add(cmd)
	client.addJSON(cmd)
	return cmd
}
