// Command bench-ipfs measures the IPFS plane between real processes, each
// figure against a reference of the same run: plain bitswap on loopback, raw
// TCP on a narrow and on a long link, a node alone against a swarm, and one
// reader with fifty peers. It prints JSON lines on standard output and a table
// on standard error (see package benchout), and exits 0 when it ran, whatever
// fell short.
//
// It needs root, for network namespaces, and takes away all it has made.
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

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/agent"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/benchout"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
)

// scenario is a part of the benchmark, on a bed of its own.
type scenario struct {
	name  string
	nodes int
	run   func(ctx context.Context, b *bench) error
}

var scenarios = []scenario{
	{"loopback", 1, loopback},
	{"link", 3, link},
	{"swarm", 0, swarm}, // of as many nodes as the sizes say
	{"many", 2, many},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// That nobody reads any more ends the benchmark by an error, in order.
	signal.Ignore(syscall.SIGPIPE)
	var err error
	if len(os.Args) > 1 && os.Args[1] == agent.Argument {
		// Whoever started the agent says when it ends: a signal from the
		// terminal is for all of us, and it comes by the end of its input.
		err = agent.Serve(context.WithoutCancel(ctx), os.Stdin, os.Stdout)
	} else {
		err = run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-ipfs:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	names := make([]string, 0, len(scenarios))
	for _, s := range scenarios {
		names = append(names, s.name)
	}
	short := flag.Bool("short", false, "small sizes: that it works, not how fast")
	only := flag.String("only", strings.Join(names, ","), "which `scenarios` to run, of these")
	flag.Parse()
	chosen := strings.Split(*only, ",")
	for _, name := range chosen {
		if !slices.Contains(names, name) {
			return fmt.Errorf("there is no scenario %q: want some of %s", name, strings.Join(names, ","))
		}
	}
	size := full
	if *short {
		size = small
	}
	out := benchout.New(os.Stdout, os.Stderr)
	var errs []error
	for _, s := range scenarios {
		if slices.Contains(chosen, s.name) && ctx.Err() == nil {
			out.Logf("%s …", s.name)
			if err := s.do(ctx, out, size); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", s.name, err))
			}
		}
	}
	return errors.Join(append(errs, out.Table())...)
}

func (s scenario) do(ctx context.Context, out *benchout.Writer, size sizes) (err error) {
	nodes := s.nodes
	if nodes == 0 {
		nodes = size.swarmNodes + 1
	}
	bed, err := testbed.New(testbed.Options{Nodes: nodes, NoContainerd: true})
	if err != nil {
		return err
	}
	b := &bench{Bed: bed, out: out, sizes: size}
	defer func() {
		if err != nil {
			out.Logf("%s", bed.Logs())
		}
		err = errors.Join(err, b.end(), bed.Close())
	}()
	return s.run(ctx, b)
}
