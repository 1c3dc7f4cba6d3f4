package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/benchout"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
)

// firstMount mounts an image whose tables of contents are here and whose tree
// is not, by a daemon that has just started. The reference is what nobody gets
// around: to decode the tables.
func (b *bench) firstMount(ctx context.Context, p pushed) error {
	tocs, err := b.tablesOfContents(ctx, p)
	if err != nil {
		return err
	}
	m, err := inTurn(ctx, b.sizes.rounds, func(ctx context.Context) (float64, error) {
		if err := b.restart(ctx, b.forgetTrees); err != nil {
			return 0, err
		}
		r, took, err := b.prepare(ctx, lazy, p.cid)
		if err != nil {
			return 0, err
		}
		if err := b.remove(ctx, r); err != nil {
			return 0, err
		}
		if err := b.collect(ctx); err != nil {
			return 0, err
		}
		return milliseconds(took), b.until(ctx, "the tree to be unmounted", func() (bool, error) {
			n, err := b.treesMounted()
			return n == 0, err
		})
	}, func(context.Context) (float64, error) {
		runtime.GC() // what is left of other work is not this one's
		begin := time.Now()
		for _, raw := range tocs {
			if err := json.Unmarshal(raw, new(estargz.JTOC)); err != nil {
				return 0, err
			}
		}
		return milliseconds(time.Since(begin)), nil
	})
	if err != nil {
		return err
	}
	return b.add(benchout.Figure{
		Name: "first-mount", Value: m.value, Unit: "ms",
		Reference: "decoding the TOCs", ReferenceValue: m.reference, Bar: benchout.AtMost(1.5),
	})
}

func (b *bench) treesDir() string { return filepath.Join(b.node.DaemonRoot(), "trees") }

// treesMounted counts the trees that the node's daemon has mounted.
func (b *bench) treesMounted() (n int, err error) {
	mounts, err := testbed.Mounts()
	for _, m := range mounts {
		if strings.HasPrefix(m.Point, b.treesDir()+"/") {
			n++
		}
	}
	return n, err
}

// forgetTrees removes all images of trees; none is mounted.
func (b *bench) forgetTrees() error {
	n, err := b.treesMounted()
	if err != nil {
		return err
	}
	if n > 0 {
		return fmt.Errorf("%d trees are still mounted", n)
	}
	trees, err := os.ReadDir(b.treesDir())
	if err != nil {
		return err
	}
	for _, t := range trees {
		if err := os.RemoveAll(filepath.Join(b.treesDir(), t.Name())); err != nil {
			return err
		}
	}
	return nil
}

// tablesOfContents are the JSON of all layers' TOCs.
func (b *bench) tablesOfContents(ctx context.Context, p pushed) (tocs [][]byte, err error) {
	daemon, err := kubo.New("/unix" + b.seeder.APISocket())
	if err != nil {
		return nil, err
	}
	defer daemon.Close()
	for i, l := range p.layers {
		raw, err := tableOfContents(ctx, daemon, l)
		if err != nil {
			return nil, fmt.Errorf("TOC of layer %d: %w", i, err)
		}
		tocs = append(tocs, raw)
	}
	return tocs, nil
}

func tableOfContents(ctx context.Context, daemon *kubo.Client, l pushedLayer) ([]byte, error) {
	r, err := daemon.Cat(ctx, l.CID, 0, -1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	blob, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	begin, _, err := estargz.OpenFooter(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))))
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(bytes.NewReader(blob[begin:]))
	if err != nil {
		return nil, err
	}
	t := tar.NewReader(z)
	if _, err := t.Next(); err != nil {
		return nil, err
	}
	return io.ReadAll(t)
}

// laterMaximum is how much longer than containerd's own snapshotter we may take
// for the root of one more container.
const laterMaximum = 5 * time.Millisecond

// laterMounts makes roots of an image that is mounted already.
func (b *bench) laterMounts(ctx context.Context, p pushed) error {
	more := func(snapshotter, image string) measurement {
		return func(ctx context.Context) (float64, error) {
			r, took, err := b.prepare(ctx, snapshotter, image)
			if err != nil {
				return 0, err
			}
			return milliseconds(took), b.remove(ctx, r)
		}
	}
	theirs := more(native, p.Name)
	m, err := inTurn(ctx, b.sizes.prepares, more(lazy, p.cid), func(ctx context.Context) (float64, error) {
		ms, err := theirs(ctx)
		return ms + milliseconds(laterMaximum), err
	})
	if err != nil {
		return err
	}
	return b.add(benchout.Figure{
		Name: "later-mount", Value: m.value, Unit: "ms",
		Reference: fmt.Sprintf("native and %v", laterMaximum), ReferenceValue: m.reference, Bar: benchout.AtMost(1),
	})
}
