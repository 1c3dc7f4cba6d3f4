package image

import (
	"context"
	"errors"
	"testing"
)

// TestOptimizeRefuses has images that cannot be run. Those that can are the
// integration tests'.
func TestOptimizeRefuses(t *testing.T) {
	d, temp := newDaemon(), t.TempDir()
	_, err := Push(context.Background(), PushOptions{
		Image: twoPlatforms(t, ""), Daemon: d, TempDir: temp, AllPlatforms: true, Optimize: &Optimize{Command: []string{"sh"}},
	})
	if !errors.Is(err, ErrNotInContainerd) {
		t.Errorf("from an archive: %v", err)
	}
	ctx, c := newContainerd(t)
	_, err = runOnce(ctx, &source{containerd: c.Client}, PushOptions{Platforms: []string{"linux/arm64"}, Optimize: &Optimize{}})
	if !errors.Is(err, ErrOtherPlatform) {
		t.Errorf("with a platform: %v", err)
	}
	if len(d.pinned) > 0 {
		t.Error("something was pushed")
	}
	noTemp(t, temp)
}
