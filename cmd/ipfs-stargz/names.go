package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
)

// publishName has the name of a key stand for an image that was pushed. The key
// is made the first time. What there is to say goes to stderr: the last line of
// a push is the CID.
func publishName(ctx context.Context, daemon *kubo.Client, key, cid string) error {
	if err := daemon.EnsureKey(ctx, key); err != nil {
		return fmt.Errorf("push: the image is there as %s, but not its name: %w", cid, err)
	}
	p, err := daemon.Publish(ctx, key, "/ipfs/"+cid)
	if err != nil {
		return fmt.Errorf("push: the image is there as %s, but not its name: %w", cid, err)
	}
	fmt.Fprintf(os.Stderr, "ipns://%s stands for it\n", p.Name)
	if p.Later {
		fmt.Fprintln(os.Stderr, "warning: nobody heard of the name yet; the daemon publishes it when a peer is there")
	}
	return nil
}

// resolveName returns the image that a reference ipns://NAME stands for now; any
// other reference it returns as it is.
func resolveName(ctx context.Context, daemon *kubo.Client, ref string) (string, error) {
	name, ok := strings.CutPrefix(ref, "ipns://")
	if !ok {
		return ref, nil
	}
	path, stale, err := daemon.Resolve(ctx, name)
	if err != nil {
		return "", fmt.Errorf("resolve %s: %w", ref, err)
	}
	cid, ok := strings.CutPrefix(path, "/ipfs/")
	if !ok || strings.Contains(cid, "/") {
		return "", fmt.Errorf("resolve %s: it stands for %s, which is no image: want /ipfs/CID", ref, path)
	}
	fmt.Fprintf(os.Stderr, "%s stands for %s\n", ref, cid)
	if stale {
		fmt.Fprintln(os.Stderr, "warning: nobody answered; this is the last value known here")
	}
	return "ipfs://" + cid, nil
}
