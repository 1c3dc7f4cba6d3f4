package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ipfs-stargz/ipfs-stargz/image/convert"
	"github.com/ipfs-stargz/ipfs-stargz/image/estargz"
	"github.com/ipfs-stargz/ipfs-stargz/image/layout"
	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
	"github.com/ipfs-stargz/ipfs-stargz/image/optimize"
	"github.com/ipfs-stargz/ipfs-stargz/image/progress"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
)

// PushOptions says what to push, and with what.
type PushOptions struct {
	// Image is a name in containerd, or the path of an OCI archive or layout
	// directory, which may have a name of an image in it behind a colon. The
	// prefixes "containerd:", "oci-archive:" and "oci:" say which is meant.
	Image      string
	Containerd Containerd

	// Platforms to push of an image with an index, such as "linux/arm64";
	// default: this machine's. AllPlatforms pushes all that the index lists,
	// attestations too.
	Platforms    []string
	AllPlatforms bool

	// EStargz says how layers are converted. Other options make other layers,
	// and so another CID.
	EStargz estargz.Options

	// Optimize, if not nil, has the image of this machine's platform run once;
	// what its container opens comes first in its layers. The image must be in
	// containerd.
	Optimize *Optimize

	// Profile, if not "", says how all blobs are cut into blocks: as other tools
	// do it, which then give them the same CIDs. By default layers are cut at
	// their files.
	Profile importer.Profile

	// Output, if not "", is a file to which the pushed image is written too, as
	// an OCI archive.
	Output string
	// TempDir holds the converted layers during the push, which need as much room
	// as the image has bytes, and the uncompressed form of each layer while it
	// is converted; default: [os.TempDir].
	TempDir string

	Daemon   Daemon            // required
	Progress progress.Reporter // default: none
}

// PushResult is what was pushed.
type PushResult struct {
	CID    cid.Cid            // of the root: the image's name in IPFS
	Target ocispec.Descriptor // the image's index or manifest
	Blobs  int                // of the image: documents and layers
	Bytes  int64              // of these

	Converted int             // layers that became eStargz
	Kept      int             // layers that were lazy already
	Plain     int             // layers that are not lazy
	Warnings  []string        // why not, and other things to know
	Optimized optimize.Result // what the run showed, if Optimize asked for one
	Took      time.Duration
}

// Push puts an image into IPFS, through the daemon, which pins it: its layers
// as eStargz, its documents rewritten for them. The same image gives the same
// CID, wherever and whenever it is pushed, unless it is run before (Optimize):
// what it opens then is not always the same. What was made on the way is removed
// again, on errors too and when ctx ends.
func Push(ctx context.Context, o PushOptions) (_ PushResult, err error) {
	begin := time.Now()
	if o.Progress == nil {
		o.Progress = progress.Discard()
	}
	if err := o.Profile.Check(); err != nil {
		return PushResult{}, fmt.Errorf("push %s: %w", o.Image, err)
	}
	sctx, src, err := openSource(ctx, o.Image, o.Containerd)
	if err != nil {
		return PushResult{}, fmt.Errorf("push %s: %w", o.Image, err)
	}
	defer src.Close()
	ran, err := runOnce(sctx, src, o)
	if err != nil {
		return PushResult{}, fmt.Errorf("push %s: optimize: %w", o.Image, err)
	}
	dir, err := os.MkdirTemp(o.TempDir, "ipfs-stargz-push-*")
	if err != nil {
		return PushResult{}, fmt.Errorf("push %s: %w", o.Image, err)
	}
	defer os.RemoveAll(dir)
	o.EStargz.TempDir = dir
	job := convert.Job{
		Source:   src.blobs,
		Root:     src.root,
		First:    ran.Layers,
		Choice:   oci.Choice{All: o.AllPlatforms, Platforms: o.Platforms},
		Dir:      dir,
		Layer:    convert.With(o.EStargz),
		Store:    storeIn(o.Daemon, o.Profile),
		Progress: o.Progress,
	}
	made, err := convert.Run(sctx, job)
	if err != nil {
		return PushResult{}, fmt.Errorf("push %s: %w", o.Image, err)
	}
	// Where the descriptor of the source came from left its marks on it (names,
	// times), which are no part of the image.
	target := ocispec.Descriptor{
		MediaType: made.Root.MediaType, Digest: made.Root.Digest, Size: made.Root.Size, URLs: made.Root.URLs,
	}
	if o.Output != "" {
		if err := layout.WriteArchive(sctx, o.Output, target, src.name, made.Blobs, job.Provider()); err != nil {
			return PushResult{}, fmt.Errorf("push %s: %w", o.Image, err)
		}
	}
	root, err := storeRoot(ctx, o.Daemon, target, made.CIDs)
	if err != nil {
		return PushResult{}, fmt.Errorf("push %s: root descriptor: %w", o.Image, err)
	}
	return PushResult{
		CID: root, Target: target, Blobs: len(made.Blobs), Bytes: sum(made.Blobs),
		Converted: made.Converted, Kept: made.Kept, Plain: made.Plain,
		Warnings: append(ran.Warnings(), made.Warnings...), Optimized: ran, Took: time.Since(begin),
	}, nil
}

// storeIn stores blobs with the daemon. They are not pinned yet: a CAR names its
// roots before its blocks, and a blob's root is known last.
func storeIn(d Daemon, profile importer.Profile) func(context.Context, convert.Blob) (cid.Cid, error) {
	return func(ctx context.Context, b convert.Blob) (root cid.Cid, err error) {
		err = d.ImportCAR(ctx, nil, func(put ipfs.PutFunc) error {
			switch {
			case profile != "":
				root, _, err = importer.ByProfile(ctx, profile, b.Reader, put)
			case len(b.Cuts) > 0:
				root, _, err = importer.Layer(ctx, b.Reader, b.Cuts, importer.DefaultLeafSizes(), put)
			default:
				root, _, err = importer.File(ctx, b.Reader, put)
			}
			return err
		})
		return root, err
	}
}

// storeRoot stores the descriptor of the image's top blob, and pins it and all
// blobs of the image, cids: it does not link to them in a way that a pin would
// follow.
func storeRoot(ctx context.Context, d Daemon, target ocispec.Descriptor, cids []cid.Cid) (cid.Cid, error) {
	data, err := json.Marshal(target)
	if err != nil {
		return cid.Undef, err
	}
	var made []blocks.Block
	root, _, err := importer.File(ctx, bytes.NewReader(data), func(_ context.Context, b blocks.Block) error {
		made = append(made, b)
		return nil
	})
	if err != nil {
		return cid.Undef, err
	}
	err = d.ImportCAR(ctx, append([]cid.Cid{root}, cids...), func(put ipfs.PutFunc) error {
		for _, b := range made {
			if err := put(ctx, b); err != nil {
				return err
			}
		}
		return nil
	})
	return root, err
}

// sum adds up the sizes of blobs.
func sum(blobs []ocispec.Descriptor) (bytes int64) {
	for _, b := range blobs {
		bytes += b.Size
	}
	return bytes
}
