package optimize

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/image/record"
)

// container is the one that is run.
type container struct {
	containerd.Container
	client *containerd.Client
	task   containerd.Task // nil until it is made
}

// newContainer makes the container, with a snapshot of its own.
func newContainer(ctx context.Context, job Job) (*container, error) {
	id := "ipfs-stargz-optimize-" + rand.Text()
	process := []oci.SpecOpts{oci.WithImageConfig(job.Image)}
	if len(job.Command) > 0 {
		process = append(process, oci.WithProcessArgs(job.Command...))
	}
	// By default a container has a network namespace of its own, with nothing in it.
	made, err := job.Client.NewContainer(ctx, id,
		containerd.WithImage(job.Image),
		containerd.WithSnapshotter(snapshotter),
		containerd.WithNewSnapshot(id, job.Image),
		containerd.WithNewSpec(append(process, checkCommand)...),
	)
	if err != nil {
		return nil, errors.Join(err, cleanup(ctx, func(ctx context.Context) error {
			return containerd.WithSnapshotCleanup(ctx, job.Client, containers.Container{Snapshotter: snapshotter, SnapshotKey: id})
		}))
	}
	return &container{Container: made, client: job.Client}, nil
}

// checkCommand refuses a container that would run nothing.
func checkCommand(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
	if len(s.Process.Args) == 0 {
		return errors.New("the image has no command of its own; name one: push --optimize IMAGE -- COMMAND")
	}
	return nil
}

// layerDirs are the directories of the container's n layers, the topmost first.
func (c *container) layerDirs(ctx context.Context, n int) ([]string, error) {
	mounts, err := c.client.SnapshotService(snapshotter).Mounts(ctx, c.ID())
	if err != nil {
		return nil, fmt.Errorf("snapshot to record: %w", err)
	}
	return lowerDirs(mounts, n)
}

// lowerDirs are the lower directories of an overlay of n layers.
func lowerDirs(mounts []mount.Mount, n int) ([]string, error) {
	if len(mounts) == 1 && mounts[0].Type == "overlay" {
		for _, o := range mounts[0].Options {
			if list, ok := strings.CutPrefix(o, "lowerdir="); ok {
				if dirs := strings.Split(list, ":"); len(dirs) == n {
					return dirs, nil
				}
			}
		}
	}
	return nil, fmt.Errorf("containerd's snapshotter %s does not mount one directory for each of the image's %d layers, but %v; set it up as containerd has it by default", snapshotter, n, mounts)
}

// run runs the container to its end, or to that of its time, and records.
func (c *container) run(ctx context.Context, job Job, recorder *record.Recorder) (Result, error) {
	var err error
	if c.task, err = c.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, job.Output, job.Output))); err != nil {
		return Result{}, fmt.Errorf("run the image: %w", err)
	}
	exited, err := c.task.Wait(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("run the image: %w", err)
	}
	// The process is there, in its root, and waits for its start.
	root := fmt.Sprintf("/proc/%d/root", c.task.Pid())
	if err := checkOverlay(root); err != nil {
		return Result{}, err
	}
	if err := recorder.Start(root); err != nil {
		return Result{}, err
	}
	if err := c.task.Start(ctx); err != nil {
		return Result{}, fmt.Errorf("run the image: %w", err)
	}
	begin := time.Now()
	end := time.NewTimer(job.Timeout)
	defer end.Stop()
	var r Result
	select {
	case status := <-exited:
		if err := status.Error(); err != nil {
			return Result{}, fmt.Errorf("wait for the container: %w", err)
		}
		r.ExitCode = status.ExitCode()
	case <-end.C:
		r.Stopped = true
	case <-ctx.Done():
		return Result{}, ctx.Err()
	}
	r.Ran = time.Since(begin)
	return r, nil
}

// checkOverlay makes sure that root is a container's and not by mistake a
// process's of another machine, whose number is the same: then much that has
// nothing to do with the image would be recorded.
func checkOverlay(root string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return fmt.Errorf("the container's root %s: %w; run this on containerd's machine, in its PID namespace", root, err)
	}
	if st.Type != unix.OVERLAYFS_SUPER_MAGIC {
		return fmt.Errorf("the container's root %s is no overlay; run this on containerd's machine, in its PID namespace", root)
	}
	return nil
}

// remove kills what runs of the container, and removes it and its snapshot.
func (c *container) remove(ctx context.Context) error {
	var errs []error
	if c.task != nil {
		if _, err := c.task.Delete(ctx, containerd.WithProcessKill); err != nil {
			errs = append(errs, fmt.Errorf("end container %s: %w; see `ctr tasks rm --force`", c.ID(), err))
		}
	}
	if err := c.Delete(ctx, containerd.WithSnapshotCleanup); err != nil {
		errs = append(errs, fmt.Errorf("remove container %s: %w; see `ctr containers rm`", c.ID(), err))
	}
	return errors.Join(errs...)
}
