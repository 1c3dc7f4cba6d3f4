// Command leaves compares ways to cut an image's layers into blocks, on the
// Python image of the integration tests: how many blocks there are and what
// their tree costs, how much a start of the program fetches, how much an image
// has in common with its successors, and how fast all of it is read. The table
// in docs/decisions.md, from which the sizes of leaves were chosen, is its output:
//
//	go run ./integration/cmd/leaves
//
// It needs root and Linux 6.5, for it unpacks the image, runs it, and asks the
// kernel which parts of its files were read.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/ipfs-stargz/ipfs-stargz/image/estargz"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/image"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
)

func main() {
	temp := flag.String("temp-dir", "/var/tmp", "`directory` for the unpacked image")
	flag.Parse()
	if err := run(context.Background(), os.Stdout, *temp); err != nil {
		fmt.Fprintln(os.Stderr, "leaves:", err)
		os.Exit(1)
	}
}

// way is a way to put a layer into IPFS.
type way struct {
	name  string
	chunk int  // bytes of a file that are compressed on their own
	stock bool // written by stargz-snapshotter's library
	put   cutting
}

const kib = 1 << 10

// cut is a way that cuts layers at their files, by sizes in KiB.
func cut(chunk, own, least, target, most int) way {
	sizes := importer.LeafSizes{Own: own * kib, Min: least * kib, Target: target * kib, Max: most * kib}
	name := fmt.Sprintf("%d/%d/%d/%d", own, least, target, most)
	if chunk != estargz.DefaultChunkSize {
		name = fmt.Sprintf("chunks of %d KiB, %s", chunk/kib, name)
	} else if sizes == importer.DefaultLeafSizes() {
		name = "* " + name
	}
	return way{name, chunk, false, atFiles(sizes)}
}

func ways() []way {
	const chunk = estargz.DefaultChunkSize
	usual := importer.DefaultLeafSizes()
	return []way{
		{"stock writer, 64 KiB each", chunk, true, every(64 * kib)},
		{"stock writer, cut as *", chunk, true, atFiles(usual)},
		{"64 KiB each", chunk, false, every(64 * kib)},
		{"256 KiB each (Kubo)", chunk, false, kubo},
		{"1 MiB each (unixfs-v1-2025)", chunk, false, standard},
		cut(chunk, 8, 16, 64, 256),
		cut(chunk, 16, 4, 16, 64),
		cut(chunk, 16, 16, 64, 256),
		cut(chunk, 32, 8, 32, 128),
		cut(chunk, 32, 16, 64, 256),
		cut(chunk, 32, 32, 128, 512),
		cut(chunk, 64, 16, 64, 256),
		cut(chunk, 64, 32, 128, 512),
		cut(chunk, 128, 32, 128, 512),
		cut(chunk, 256, 64, 256, 1024),
		cut(512*kib, 32, 16, 64, 256),
		cut(256*kib, 32, 16, 64, 256),
	}
}

func run(ctx context.Context, w io.Writer, temp string) error {
	store, err := testbed.Images()
	if err != nil {
		return err
	}
	im, err := store.Get(ctx, image.Python())
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(temp, "leaves-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	start, err := record(ctx, im, dir)
	if err != nil {
		return err
	}
	b := bench{im: im, start: start, dir: dir}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "own/min/target/max KiB\tlayers MB\tblocks\ttree KB\tstart MB\tblocks\tupgraded\tfile first\tother times\tMB/CPU s\t")
	for _, way := range ways() {
		r, err := b.measure(ctx, way)
		if err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
		fmt.Fprintf(table, "%s\t%.1f\t%d\t%.0f\t%.2f\t%d", way.name, mb(r.size), r.blocks, float64(r.tree)/1e3, mb(r.started), r.startBlocks)
		for _, s := range r.shared {
			fmt.Fprintf(table, "\t%.1f %%", 100*s)
		}
		fmt.Fprintf(table, "\t%.0f\t\n", r.speed)
	}
	return table.Flush()
}

func mb(n int64) float64 { return float64(n) / 1e6 }
