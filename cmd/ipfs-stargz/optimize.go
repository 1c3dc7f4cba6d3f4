package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ipfs-stargz/ipfs-stargz/image"
	"github.com/ipfs-stargz/ipfs-stargz/image/optimize"
)

// runFlags are those by which push runs the image first.
type runFlags struct {
	on      bool
	timeout time.Duration
}

func (f *runFlags) add(flags *pflag.FlagSet) {
	flags.BoolVar(&f.on, "optimize", false, "run the image once, and put first in its layers what it opens")
	flags.DurationVar(&f.timeout, "optimize-timeout", optimize.DefaultTimeout, "stop the run after this `time`; what it opened until then counts")
}

// checkArguments wants the image, and what it runs after "--".
func (f *runFlags) checkArguments(cmd *cobra.Command, args []string) error {
	images := args
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		if !f.on {
			return errors.New("push runs a command only with --optimize")
		}
		images = args[:dash]
	}
	if f.timeout <= 0 {
		return fmt.Errorf("--optimize-timeout is %v: nothing can run in that time; choose a longer one", f.timeout)
	}
	return oneArgument("IMAGE")(cmd, images)
}

// optimize returns how to run the image, nil if it is not to be run.
func (f *runFlags) optimize(command []string) *image.Optimize {
	if !f.on {
		return nil
	}
	return &image.Optimize{Command: command, Timeout: f.timeout, Output: os.Stderr}
}
