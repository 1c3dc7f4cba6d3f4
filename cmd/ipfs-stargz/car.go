package main

import (
	"context"
	"fmt"
	"os"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/image"
	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
	"github.com/ipfs-stargz/ipfs-stargz/image/progress"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store/pins"
)

// afterPush gives an image's pin the name that it was pushed by, for people, and
// writes the image to a CAR file, if one is named.
func afterPush(ctx context.Context, daemon *kubo.Client, root cid.Cid, name, car string) error {
	if err := daemon.Pin(ctx, root, name[:min(len(name), pins.MaxName)], nil); err != nil {
		return err
	}
	if car == "" {
		return nil
	}
	size, err := image.SaveCAR(ctx, daemon, root, car)
	if err == nil {
		fmt.Fprintf(os.Stderr, "%s: %s\n", car, progress.Bytes(size))
	}
	return err
}

// pullRef is what to pull: what the argument names, or what is in a CAR file,
// which is loaded.
func pullRef(ctx context.Context, daemon *kubo.Client, args []string, car string) (string, error) {
	if car == "" {
		return args[0], nil
	}
	want := cid.Undef
	if len(args) > 0 {
		var err error
		if want, err = oci.ParseCID(args[0]); err != nil {
			return "", err
		}
	}
	root, err := image.LoadCAR(ctx, daemon, car, want)
	if err != nil {
		return "", err
	}
	return root.String(), nil
}
