// Command bench-fs measures what a container feels of its lazy root: reads,
// small files, walks, mounts, memory, and the way from a peer to a reader, each
// figure against a reference of the same run. "Native" is containerd's own
// overlayfs snapshotter on the same disk, with the same files unpacked. It
// prints JSON lines on standard output and a table on standard error (see
// package benchout), and exits 0 when it ran, whatever fell short.
//
// It needs root, containerd (make installs it) and fio, and takes away all it
// has made.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/agent"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/benchout"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
)

// scenario is a part of the benchmark, on a bed of its own.
type scenario struct {
	name string
	run  func(ctx context.Context, b *bench) error
}

var scenarios = []scenario{
	{"file", file},
	{"small", small},
	{"names", names},
	{"layers", layers},
	{"far", far},
	{"shared", shared},
	{"readers", readers},
	{"memory", memory},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// That nobody reads any more ends the benchmark by an error, in order.
	signal.Ignore(syscall.SIGPIPE)
	if err := start(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench-fs:", err)
		os.Exit(1)
	}
}

// start is the benchmark, or what it starts this program as again. Whoever
// started such a process says when it ends, by the end of its input: a signal
// from the terminal is for all of us.
func start(ctx context.Context) error {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case agent.Argument:
			return agent.Serve(context.WithoutCancel(ctx), os.Stdin, os.Stdout)
		case loopbackArgument:
			return serveLoopback(os.Args[2:])
		}
	}
	return run(ctx)
}

// plan is what the command line asks for.
type plan struct {
	binary    string
	sizes     sizes
	modes     []mode
	scenarios []scenario
}

func parse() (plan, error) {
	var all []string
	for _, s := range scenarios {
		all = append(all, s.name)
	}
	binary := flag.String("binary", "bin/ipfs-stargz", "the ipfs-stargz to measure")
	short := flag.Bool("short", false, "small sizes and one round: that it works, not how fast")
	only := flag.String("run", strings.Join(all, ","), "which `scenarios` to run, of these")
	modes := flag.String("mode", "kernel,fuse", "the `modes` to run them in, of kernel and fuse; auto is what the daemon chooses by itself, held to kernel's bars")
	rounds := flag.Int("rounds", 0, "how often to measure what is measured in turn (default 5, short 1)")
	flag.Parse()
	p := plan{binary: *binary, sizes: full}
	if flag.NArg() > 0 {
		return p, fmt.Errorf("there is no argument %q: see -help", flag.Arg(0))
	}
	if *short {
		p.sizes = brief
	}
	if *rounds > 0 {
		p.sizes.rounds = *rounds
	}
	for m := range strings.SplitSeq(*modes, ",") {
		if _, ok := barsOf[mode(m)]; !ok {
			return p, fmt.Errorf("there is no mode %q: want some of kernel,fuse,auto", m)
		}
		p.modes = append(p.modes, mode(m))
	}
	for name := range strings.SplitSeq(*only, ",") {
		i := slices.Index(all, name)
		if i < 0 {
			return p, fmt.Errorf("there is no scenario %q: want some of %s", name, strings.Join(all, ","))
		}
		p.scenarios = append(p.scenarios, scenarios[i])
	}
	return p, nil
}

func run(ctx context.Context) error {
	p, err := parse()
	if err != nil {
		return err
	}
	out := benchout.New(os.Stdout, os.Stderr)
	var errs []error
	for _, m := range p.modes {
		for _, s := range p.scenarios {
			if ctx.Err() != nil {
				break
			}
			out.Logf("%s: %s …", m, s.name)
			begin := time.Now()
			b := &bench{out: out, sizes: p.sizes, mode: m, bars: barsOf[m], binary: p.binary}
			if err := b.do(ctx, s); err != nil {
				errs = append(errs, fmt.Errorf("%s: %s: %w", m, s.name, err))
			}
			out.Logf("   (%.1f s)", time.Since(begin).Seconds())
		}
	}
	return errors.Join(append(errs, out.Table())...)
}

// do runs a scenario on a bed of its own: the seeder, the node that is
// measured, and a third one between the two for whoever wants a long way.
func (b *bench) do(ctx context.Context, s scenario) (err error) {
	if b.store, err = testbed.Images(); err != nil {
		return err
	}
	if b.Bed, err = testbed.New(testbed.Options{Nodes: 3, Binary: b.binary}); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			b.out.Logf("%s", b.Logs())
		}
		err = errors.Join(err, b.end(context.WithoutCancel(ctx)), b.Close())
	}()
	b.seeder, b.node, b.middle = b.Nodes[0], b.Nodes[1], b.Nodes[2]
	return s.run(ctx, b)
}
