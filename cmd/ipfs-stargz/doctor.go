package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/ipfs-stargz/ipfs-stargz/config"
	"github.com/ipfs-stargz/ipfs-stargz/fs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/mounts"
	"github.com/ipfs-stargz/ipfs-stargz/image"
)

// doctorTimeout bounds all checks together.
const doctorTimeout = time.Minute

// check is one thing that doctor looked at.
type check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	Mend   string `json:"mend,omitempty"` // what to do, if not OK
	// vital: no lazy layer works without it.
	vital bool
}

// diagnosis is what doctor found.
type diagnosis struct {
	Checks []check        `json:"checks"`
	Mode   string         `json:"mode"` // in which lazy layers would be mounted; empty: in none
	Why    string         `json:"why"`
	Kernel *mounts.Kernel `json:"kernel"` // nothing where it could not be found out
}

// errUnwell is doctor's error; what is wrong it printed.
var errUnwell = errors.New("lazy layers do not work on this machine: see above what is missing and how to mend it")

func doctorCommand() *cobra.Command {
	var (
		flags      clientFlags
		containerd image.Containerd
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out whether and how this machine can mount lazy layers",
		Long: `Find out whether and how this machine can mount lazy layers, by mounting some
where nobody sees them. It needs no daemon, and says of each thing that is
missing how to mend it. It ends with 0 only when lazy layers work here.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(flags.config)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), doctorTimeout)
			defer cancel()
			d := diagnose(ctx, cfg, containerd)
			if err := flags.print(cmd, d, d.write); err != nil {
				return err
			}
			if !d.well() {
				return errUnwell
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&flags.config, "config", config.DefaultPath, "the daemon's configuration `file`")
	flags.addJSON(cmd)
	containerdFlags(cmd, &containerd)
	return cmd
}

// diagnose makes all checks. What comes later may depend on what comes before,
// so the first that fails is the one to mend first.
func diagnose(ctx context.Context, cfg config.Config, containerd image.Containerd) diagnosis {
	dir, err := existing(cfg.Root)
	var d diagnosis
	d.add(checkRights(), checkRoot(cfg.Root, dir, err))
	if err == nil {
		choice, err := fs.ChooseMode(ctx, dir, cfg.FS.Mode)
		d.Kernel = choice.Kernel
		d.add(kernelChecks(choice)...)
		d.add(checkMode(cfg.FS.Mode, choice, err))
		if err == nil {
			d.Mode, d.Why = choice.Mode, choice.Why
		}
	}
	d.add(checkFUSE())
	if err == nil {
		d.add(checkSpace(dir, cfg.IPFS))
	}
	d.add(checkContainerd(ctx, containerd))
	return d
}

func (d *diagnosis) add(checks ...check) { d.Checks = append(d.Checks, checks...) }

// well reports whether lazy layers work.
func (d *diagnosis) well() bool {
	for _, c := range d.Checks {
		if c.vital && !c.OK {
			return false
		}
	}
	return d.Mode != ""
}

func (d *diagnosis) write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range d.Checks {
		how := "ok"
		switch {
		case !c.OK && c.vital:
			how = "FAILED"
		case !c.OK:
			how = "missing"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", how, c.Name, c.Detail)
		if c.Mend != "" {
			fmt.Fprintf(t, "\t\tto mend it: %s\n", strings.ReplaceAll(c.Mend, "\n", "\n\t\t"))
		}
	}
	return t.Flush()
}
