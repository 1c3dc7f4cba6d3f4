// Package optimize runs an image once, in containerd, and tells which files its
// container opens, in which order, and of which layer each is: what to put first
// when the layers are made, so that a container that starts elsewhere finds it
// fetched.
package optimize

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/ipfs-stargz/ipfs-stargz/image/progress"
	"github.com/ipfs-stargz/ipfs-stargz/image/record"
)

// DefaultTimeout is how long an image runs that does not end by itself.
const DefaultTimeout = 30 * time.Second

// cleanupTimeout bounds how long the end of the container and of what it needed
// is waited for.
const cleanupTimeout = time.Minute

// snapshotter is containerd's own whose snapshots have a directory for each
// layer.
const snapshotter = "overlayfs"

// beforeStart are the files that containerd reads in every container's root, to
// know the user's number, before it exists and anything can be recorded.
var beforeStart = []string{"etc/passwd", "etc/group"}

// ErrNothingOpened is returned for a run in which no file of the image was
// opened.
var ErrNothingOpened = errors.New("the container opened no file of the image")

// Job says what to run.
type Job struct {
	Client *containerd.Client
	// Image is unpacked, if it is not yet, and stays so.
	Image containerd.Image
	// Command is the whole command; default: the image's own.
	Command []string
	// Timeout is when the container is stopped that did not end; what was
	// recorded until then counts. Default: [DefaultTimeout].
	Timeout time.Duration
	// Output takes what the container prints, from two goroutines. Required.
	Output io.Writer
}

// Result is what a run showed.
type Result struct {
	// Layers has, for each layer of the image by the digest of its blob, the
	// files that were opened, in the order of their first opening; none for some.
	Layers map[digest.Digest][]string
	Files  int   // in Layers
	Bytes  int64 // of these files, uncompressed

	Ran      time.Duration // from the container's start to its end
	Stopped  bool          // it did not end by itself
	ExitCode uint32        // if it did
	Lost     bool          // more was opened than could be noted
}

// String tells people of the run.
func (r Result) String() string {
	with := 0
	for _, files := range r.Layers {
		if len(files) > 0 {
			with++
		}
	}
	how := fmt.Sprintf("until it ended with exit code %d", r.ExitCode)
	if r.Stopped {
		how = "until it was stopped"
	}
	return fmt.Sprintf("ran for %v, %s: the %d files that it opened, %s uncompressed, come first in %d of %d layers",
		r.Ran.Round(time.Millisecond), how, r.Files, progress.Bytes(r.Bytes), with, len(r.Layers))
}

// Warnings are what a person should know of the run before trusting it.
func (r Result) Warnings() (all []string) {
	if r.ExitCode != 0 {
		all = append(all, fmt.Sprintf("the container ended with exit code %d after %v; what it opened until then comes first", r.ExitCode, r.Ran.Round(time.Millisecond)))
	}
	if r.Lost {
		all = append(all, "the container opened more files, or faster, than could be recorded; not all of them come first")
	}
	return all
}

// Run does the job. The container has no network, and is gone afterwards, also
// when ctx ends.
func Run(ctx context.Context, job Job) (_ Result, err error) {
	if job.Timeout == 0 {
		job.Timeout = DefaultTimeout
	}
	// First, because it may lack rights, and unpacking takes long.
	recorder, err := record.New()
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, recorder.Close()) }()
	ctx, release, err := job.Client.WithLease(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("lease of containerd: %w", err)
	}
	defer func() { err = errors.Join(err, cleanup(ctx, release)) }()

	manifest, err := images.Manifest(ctx, job.Image.ContentStore(), job.Image.Target(), job.Image.Platform())
	if err != nil {
		return Result{}, incomplete(err)
	}
	if err := job.Image.Unpack(ctx, snapshotter); err != nil {
		return Result{}, fmt.Errorf("unpack the image to run it: %w", incomplete(err))
	}
	var layers []digest.Digest
	for _, l := range manifest.Layers {
		if images.IsLayerType(l.MediaType) {
			layers = append(layers, l.Digest)
		}
	}
	c, err := newContainer(ctx, job)
	if err != nil {
		return Result{}, fmt.Errorf("container to record: %w", err)
	}
	defer func() { err = errors.Join(err, cleanup(ctx, c.remove)) }()
	dirs, err := c.layerDirs(ctx, len(layers))
	if err != nil {
		return Result{}, err
	}
	result, err := c.run(ctx, job, recorder)
	if err != nil {
		return Result{}, err
	}
	recording, err := recorder.Stop()
	if err != nil {
		return Result{}, err
	}
	if len(recording.Files) == 0 {
		return Result{}, ErrNothingOpened
	}
	result.Lost = recording.Lost
	if err := result.locate(recording.Files, layers, dirs); err != nil {
		return Result{}, err
	}
	return result, nil
}

// locate sorts files by layers, the lowest of which is the first. dirs are their
// unpacked forms, as [openStack] takes them.
func (r *Result) locate(files []string, layers []digest.Digest, dirs []string) error {
	s, err := openStack(dirs)
	if err != nil {
		return err
	}
	defer s.close()
	r.Layers = make(map[digest.Digest][]string, len(layers))
	for _, l := range layers {
		r.Layers[l] = nil
	}
	known := map[string]bool{}
	for _, name := range slices.Concat(beforeStart, files) {
		if known[name] {
			continue
		}
		known[name] = true
		above, size, err := s.find(name)
		if err != nil {
			return err
		}
		if above < 0 { // the container made it
			continue
		}
		l := layers[len(layers)-1-above]
		r.Layers[l] = append(r.Layers[l], name)
		r.Files++
		r.Bytes += size
	}
	return nil
}

// incomplete says what to do about an image of which a part is not there.
func incomplete(err error) error {
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("the image is not complete in containerd (%w); pull it again with all its contents (ctr images pull)", err)
	}
	return err
}

// cleanup calls do with a context that has its time even if ctx has ended.
func cleanup(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	return do(ctx)
}
