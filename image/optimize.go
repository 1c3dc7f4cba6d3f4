package image

import (
	"context"
	"errors"
	"io"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"

	"github.com/ipfs-stargz/ipfs-stargz/image/optimize"
)

// Optimize says how to run an image before it is pushed.
type Optimize struct {
	// Command is the whole command; default: the image's own.
	Command []string
	// Timeout is when it is stopped that did not end by itself; default:
	// [optimize.DefaultTimeout].
	Timeout time.Duration
	// Output takes what it prints, from two goroutines; default: nothing.
	Output io.Writer
}

// Errors about images that cannot be run before they are pushed.
var (
	// ErrNotInContainerd: the image is in an archive or layout directory.
	ErrNotInContainerd = errors.New("the image is not in containerd, which has to run it; import it first (ctr images import FILE) and push it by its name")
	// ErrOtherPlatform: platforms were chosen.
	ErrOtherPlatform = errors.New("the image is run as that of this machine's platform; choose no platforms, or all")
)

// runOnce runs the image in src, if o asks for it, and tells what of it was
// opened.
func runOnce(ctx context.Context, src *source, o PushOptions) (optimize.Result, error) {
	switch {
	case o.Optimize == nil:
		return optimize.Result{}, nil
	case src.containerd == nil:
		return optimize.Result{}, ErrNotInContainerd
	case len(o.Platforms) > 0:
		return optimize.Result{}, ErrOtherPlatform
	}
	output := o.Optimize.Output
	if output == nil {
		output = io.Discard
	}
	img := images.Image{Name: src.name, Target: src.root}
	result, err := optimize.Run(ctx, optimize.Job{
		Client:  src.containerd,
		Image:   containerd.NewImageWithPlatform(src.containerd, img, platforms.Only(platforms.DefaultSpec())),
		Command: o.Optimize.Command, Timeout: o.Optimize.Timeout, Output: output,
	})
	if err != nil {
		return optimize.Result{}, err
	}
	for _, w := range result.Warnings() {
		o.Progress.Warn(w)
	}
	return result, nil
}
