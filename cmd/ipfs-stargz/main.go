// Command ipfs-stargz runs containers from IPFS, lazily: its daemon (serve) is
// a snapshotter for containerd and an IPFS node in one process; its other
// commands move images and tell what is there.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := command().ExecuteContext(ctx)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case err == nil:
	case interrupted && errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "ipfs-stargz: interrupted")
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "ipfs-stargz:", err)
		os.Exit(1)
	}
}

// oneArgument is for commands that take what it names and nothing else.
func oneArgument(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("%s takes one argument, %s, and got %d (see %s --help)", cmd.Name(), name, len(args), cmd.CommandPath())
		}
		return nil
	}
}

// command returns the whole command line.
func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "ipfs-stargz",
		Short: "Run containers from IPFS before their images have arrived",
		// Errors are printed once, by main, and a usage text would bury them.
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(serveCommand(), pushCommand(), pullCommand(), inspectCommand(), statusCommand(), peersCommand(), versionCommand())
	root.AddCommand(pinCommand(), unpinCommand(), lsCommand(), gcCommand(), doctorCommand())
	return root
}
