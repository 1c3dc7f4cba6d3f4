package oci

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Choice says which of an image's platforms are meant. The zero value is the
// platform of this machine, with an image that has no index taken as it is.
type Choice struct {
	All       bool     // every entry of the index, attestations and artifacts too
	Platforms []string // as containerd writes them, such as "linux/arm64/v8"
}

// Pick returns the leaves of tree that are chosen: for each platform the
// one that suits it best. It is an error, which names what there is, if
// there is none for one of the platforms.
func (c Choice) Pick(ctx context.Context, f remotes.Fetcher, tree *Node) (map[*Node]bool, error) {
	leaves := tree.Leaves()
	picked := make(map[*Node]bool)
	if c.All || (tree.Index == nil && len(c.Platforms) == 0) {
		for _, n := range leaves {
			picked[n] = true
		}
		return picked, nil
	}
	wanted := make([]ocispec.Platform, 0, len(c.Platforms))
	for _, s := range c.Platforms {
		p, err := platforms.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("platform %q: %w", s, err)
		}
		wanted = append(wanted, p)
	}
	if len(wanted) == 0 {
		wanted = append(wanted, platforms.DefaultSpec())
	}
	offers := make(map[*Node]ocispec.Platform)
	for _, n := range leaves {
		p, err := n.PlatformOf(ctx, f)
		if err != nil {
			return nil, err
		}
		if p != nil {
			offers[n] = *p
		}
	}
	for _, w := range wanted {
		match := platforms.Only(w)
		var best *Node
		for _, n := range leaves {
			p, ok := offers[n]
			if !ok || !match.Match(p) {
				continue
			}
			if best == nil || match.Less(p, offers[best]) {
				best = n
			}
		}
		if best == nil {
			return nil, fmt.Errorf("the image has nothing for platform %s, only for %s: %w",
				platforms.FormatAll(w), list(leaves, offers), ErrNoPlatform)
		}
		picked[best] = true
	}
	return picked, nil
}

// list names the platforms on offer in the order of the index.
func list(leaves []*Node, offers map[*Node]ocispec.Platform) string {
	var names []string
	for _, n := range leaves {
		if p, ok := offers[n]; ok {
			names = append(names, platforms.FormatAll(p))
		}
	}
	if len(names) == 0 {
		return "none (it holds no images)"
	}
	return strings.Join(names, ", ")
}
