// Command demo shows the project's main job on real input: a Python image with
// NumPy, made from Debian packages, is pushed to IPFS on one node and started
// on a second one, over a link of 100 Mbit/s, before it has arrived there. The
// same image is then pulled in full from a registry over the same link. The
// time lines of both are printed side by side.
//
// It needs root, containerd (make installs it) and nothing else; whatever
// happens, it takes away all it has made.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/image"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
)

func main() {
	binary := flag.String("binary", "bin/ipfs-stargz", "the ipfs-stargz to show")
	rate := flag.Int64("mbit", 100, "rate of each node's link, in Mbit/s")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *binary, *rate*1_000_000); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, binary string, bitsPerSecond int64) (err error) {
	fmt.Println("The image: Debian, python3, NumPy with OpenBLAS, and an application of four lines.")
	store, err := testbed.Images()
	if err != nil {
		return err
	}
	im, err := store.Get(ctx, image.Python())
	if err != nil {
		return err
	}
	fmt.Printf("  %d layers, %s compressed\n\n", len(im.Layers), megabytes(im.Size()))

	bed, err := testbed.New(testbed.Options{Nodes: 2, BitsPerSecond: bitsPerSecond, Binary: binary})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			fmt.Fprintln(os.Stderr, bed.Logs())
		}
		err = errors.Join(err, bed.Close())
	}()
	d := &demo{bed: bed, image: im, a: bed.Nodes[0], b: bed.Nodes[1]}

	fmt.Printf("Two nodes, a and b, each with containerd and ipfs-stargz, on links of %d Mbit/s.\n", bitsPerSecond/1_000_000)
	cid, err := d.push(ctx)
	if err != nil {
		return err
	}
	lazy, err := d.lazy(ctx, cid)
	if err != nil {
		return fmt.Errorf("lazy start: %w", err)
	}
	full, err := d.full(ctx)
	if err != nil {
		return fmt.Errorf("full pull: %w", err)
	}
	report(os.Stdout, im.Size(), lazy, full)
	return nil
}
