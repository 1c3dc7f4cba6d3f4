package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/image"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/registry"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
)

// demo has the two nodes: a has the image, b starts it.
type demo struct {
	bed   *testbed.Bed
	image *image.Image
	a, b  *testbed.Node
}

// timeline is when what had happened on node b since the beginning, and how
// many bytes its link had received by then, all headers included.
type timeline struct {
	pulled  moment // the image is there for containerd to use
	mounted moment // the container's root is mounted
	output  moment // the container's first byte
	end     moment
	text    string // that the container printed
}

type moment struct {
	at       time.Duration
	received int64
}

// push starts node a and pushes the image from its containerd to IPFS.
func (d *demo) push(ctx context.Context) (cid string, err error) {
	if err := d.a.StartDaemon(ctx, testbed.DaemonConfig{}); err != nil {
		return "", err
	}
	if err := d.a.StartContainerd(ctx, ""); err != nil {
		return "", err
	}
	if err := d.a.Import(ctx, d.image); err != nil {
		return "", err
	}
	fmt.Printf("\na$ ipfs-stargz push %s\n", d.image.Name)
	begin := time.Now()
	if cid, err = d.a.Push(ctx, d.image.Name); err != nil {
		return "", err
	}
	fmt.Printf("%s\n   (%.1f s)\n", cid, time.Since(begin).Seconds())
	return cid, nil
}

// lazy starts node b and runs the image from IPFS there.
func (d *demo) lazy(ctx context.Context, cid string) (timeline, error) {
	peer, err := d.a.Multiaddr(ctx)
	if err != nil {
		return timeline{}, err
	}
	if err := d.b.StartDaemon(ctx, testbed.DaemonConfig{Peers: []string{peer}}); err != nil {
		return timeline{}, err
	}
	if err := d.b.StartContainerd(ctx, ""); err != nil {
		return timeline{}, err
	}
	fmt.Printf("\nb$ ipfs-stargz pull ipfs://%s\n", cid)
	var said string
	t, err := d.run(ctx, testbed.SnapshotterName, cid, func() (err error) {
		said, err = d.pull(ctx, cid)
		return err
	})
	fmt.Printf("%sb$ ctr run --snapshotter %s %s …\n", said, testbed.SnapshotterName, cid)
	return t, err
}

// pull pulls the image on node b and gives what the command said of how it went.
func (d *demo) pull(ctx context.Context, cid string) (string, error) {
	var stderr bytes.Buffer
	cmd := d.b.StargzCommand(ctx, "pull", "ipfs://"+cid)
	cmd.Stderr = &stderr
	if err := wait(d.b, cmd); err != nil {
		return "", fmt.Errorf("%w\n%s", err, stderr.String())
	}
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	return "   (" + lines[len(lines)-1] + ")\n", nil
}

// full pulls the same image over the same link from a registry on node a, with
// containerd's own snapshotter, and runs it.
func (d *demo) full(ctx context.Context) (_ timeline, err error) {
	l, err := d.a.Namespace.Listen(0)
	if err != nil {
		return timeline{}, err
	}
	s := &http.Server{Handler: registry.Handler("python", d.image), ReadHeaderTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() {
		err = errors.Join(err, s.Close())
		if serr := <-served; !errors.Is(serr, http.ErrServerClosed) {
			err = errors.Join(err, serr)
		}
	}()
	name := l.Addr().String() + "/python:latest"
	fmt.Printf("\nb$ ctr images pull %s\nb$ ctr run %s …\n", name, name)
	return d.run(ctx, "overlayfs", name, func() error {
		_, err := d.b.Ctr(ctx, "images", "pull", "--plain-http", "--snapshotter", "overlayfs", name)
		return err
	})
}

// run makes the image usable by pull, runs it, and notes when what was there.
func (d *demo) run(ctx context.Context, snapshotter, name string, pull func() error) (t timeline, err error) {
	before, err := d.b.Namespace.Traffic()
	if err != nil {
		return t, err
	}
	begin := time.Now()
	now := func() (moment, error) {
		m := moment{at: time.Since(begin)}
		traffic, err := d.b.Namespace.Traffic()
		m.received = traffic.Sub(before).Received
		return m, err
	}
	if err := pull(); err != nil {
		return t, err
	}
	if t.pulled, err = now(); err != nil {
		return t, err
	}
	mounted, stopWatching := watchMount(d.b, now)
	defer stopWatching()
	first := &firstWrite{note: now}
	var stderr bytes.Buffer
	cmd := d.b.RunCommand(ctx, snapshotter, name)
	cmd.Stdout, cmd.Stderr = first, &stderr
	if err := wait(d.b, cmd); err != nil {
		return t, fmt.Errorf("%w\n%s", err, stderr.String())
	}
	t.output, t.text = first.at, strings.TrimSpace(first.text.String())
	if first.err != nil || t.text == "" {
		return t, errors.Join(first.err, fmt.Errorf("the container printed %q", t.text))
	}
	if t.end, err = now(); err != nil {
		return t, err
	}
	stopWatching()
	m := <-mounted
	t.mounted = m.moment
	return t, m.err
}

// noted is a moment, or why there is none.
type noted struct {
	moment
	err error
}

// watchMount notes when the root of a container of the node is mounted. stop
// ends the watch.
func watchMount(n *testbed.Node, now func() (moment, error)) (_ <-chan noted, stop func()) {
	const interval = 2 * time.Millisecond
	ctx, stop := context.WithCancel(context.Background())
	result := make(chan noted, 1)
	go func() {
		for {
			there, err := rootMounted(n)
			if err != nil || there {
				m, merr := now()
				result <- noted{m, errors.Join(err, merr)}
				return
			}
			select {
			case <-ctx.Done():
				result <- noted{err: errors.New("no root of a container was ever mounted")}
				return
			case <-time.After(interval):
			}
		}
	}()
	return result, stop
}

func rootMounted(n *testbed.Node) (bool, error) {
	mounts, err := testbed.Mounts()
	return slices.ContainsFunc(mounts, func(m testbed.Mount) bool {
		return strings.HasPrefix(m.Point, n.Dir+"/") && strings.HasSuffix(m.Point, "/rootfs")
	}), err
}

func wait(n *testbed.Node, cmd *exec.Cmd) error {
	if err := n.Namespace.Start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// firstWrite keeps what is written, and notes the moment of the first byte.
type firstWrite struct {
	note func() (moment, error)
	text bytes.Buffer
	at   moment
	err  error
}

func (f *firstWrite) Write(p []byte) (int, error) {
	if f.text.Len() == 0 {
		f.at, f.err = f.note()
	}
	return f.text.Write(p)
}

// report prints the two time lines.
func report(w io.Writer, size int64, lazy, full timeline) {
	fmt.Fprintf(w, "\nThe containers printed: %s\n", lazy.text)
	if full.text != lazy.text {
		fmt.Fprintf(w, "                   and: %s\n", full.text)
	}
	fmt.Fprintf(w, "\n%-28s %22s %26s\n", "node b, from a standing start", "lazily from IPFS", "in full from a registry")
	for _, line := range []struct {
		name       string
		lazy, full moment
	}{
		{"resolved, usable", lazy.pulled, full.pulled},
		{"root mounted", lazy.mounted, full.mounted},
		{"first output", lazy.output, full.output},
		{"end", lazy.end, full.end},
	} {
		fmt.Fprintf(w, "%-28s %7.2f s, %10s %10.2f s, %11s\n", line.name,
			line.lazy.at.Seconds(), megabytes(line.lazy.received), line.full.at.Seconds(), megabytes(line.full.received))
	}
	fmt.Fprintf(w, "\nFirst output %.1f times as soon, with %.1f %% of the image's %s received (in full: %.1f %%).\n",
		full.output.at.Seconds()/lazy.output.at.Seconds(),
		percent(lazy.output.received, size), megabytes(size), percent(full.output.received, size))
}

func percent(part, whole int64) float64 { return 100 * float64(part) / float64(whole) }

func megabytes(n int64) string { return fmt.Sprintf("%.2f MB", float64(n)/1e6) }
