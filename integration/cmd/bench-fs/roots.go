package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/image-spec/identity"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
)

// The snapshotters that are held against each other.
const (
	lazy   = testbed.SnapshotterName
	native = "overlayfs"
)

// root is the root of a container, mounted in dir.
type root struct {
	dir         string
	snapshotter string
	key         string
}

// prepare makes the root of one more container of an image, as containerd does
// when it makes a container, and tells how long snapshotter and mounting took.
func (b *bench) prepare(ctx context.Context, snapshotter, image string) (*root, time.Duration, error) {
	img, err := b.client.GetImage(ctx, image)
	if err != nil {
		return nil, 0, err
	}
	layers, err := img.RootFS(ctx)
	if err != nil {
		return nil, 0, err
	}
	parent := identity.ChainID(layers).String()
	dir, err := os.MkdirTemp(b.node.Dir, "r")
	if err != nil {
		return nil, 0, err
	}
	r := &root{dir: dir, snapshotter: snapshotter, key: filepath.Base(dir)}
	keep := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339)})
	b.roots = append(b.roots, r) // already: an error may come after the work was done
	begin := time.Now()
	mounts, err := b.client.SnapshotService(snapshotter).Prepare(ctx, r.key, parent, keep)
	if err != nil {
		return nil, 0, fmt.Errorf("root of %s by %s: %w", image, snapshotter, err)
	}
	err = mount.All(mounts, dir)
	return r, time.Since(begin), err
}

// remove takes a root away again.
func (b *bench) remove(ctx context.Context, r *root) error {
	b.roots = slices.DeleteFunc(b.roots, func(other *root) bool { return other == r })
	if err := mount.UnmountAll(r.dir, 0); err != nil {
		return fmt.Errorf("unmounting %s: %w", r.dir, err)
	}
	err := b.client.SnapshotService(r.snapshotter).Remove(ctx, r.key)
	if errdefs.IsNotFound(err) {
		err = nil // it was never made
	}
	return errors.Join(err, os.Remove(r.dir))
}

// both makes a root by each of the snapshotters: of what was pulled, and of the
// same image unpacked.
func (b *bench) both(ctx context.Context, p pushed) (ours, theirs *root, err error) {
	if ours, _, err = b.prepare(ctx, lazy, p.cid); err != nil {
		return nil, nil, err
	}
	if err := b.unpack(ctx, p.Image); err != nil {
		return nil, nil, err
	}
	theirs, _, err = b.prepare(ctx, native, p.Name)
	return ours, theirs, err
}

// plain is the one directory on disk that an unpacked image of one layer is.
func (b *bench) plain(ctx context.Context, r *root) (string, error) {
	mounts, err := b.client.SnapshotService(r.snapshotter).Mounts(ctx, r.key)
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		for _, o := range m.Options {
			if dir, ok := strings.CutPrefix(o, "lowerdir="); ok && !strings.Contains(dir, ":") {
				return dir, nil
			}
		}
	}
	return "", fmt.Errorf("the root of snapshot %s is not over one directory: %v", r.key, mounts)
}

// collect has containerd tell its snapshotters at once what is not needed any
// more: a lease that is deleted synchronously waits for its garbage collector.
func (b *bench) collect(ctx context.Context) error {
	service := b.client.LeasesService()
	l, err := service.Create(ctx, leases.WithRandomID())
	if err != nil {
		return err
	}
	return service.Delete(ctx, l, leases.SynchronousDelete)
}

// found waits until containerd has found a daemon that was started again.
func (b *bench) found(ctx context.Context) error {
	return b.until(ctx, "containerd to find the daemon again", func() (bool, error) {
		err := b.client.SnapshotService(lazy).Walk(ctx, func(context.Context, snapshots.Info) error { return nil })
		return err == nil, nil
	})
}

// until waits for what another process brings about; a minute means never.
func (b *bench) until(ctx context.Context, what string, so func() (bool, error)) error {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		ok, err := so()
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return fmt.Errorf("waited in vain for %s", what)
}
