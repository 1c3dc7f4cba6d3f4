package image

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
	"github.com/ipfs-stargz/ipfs-stargz/image/progress"
)

// PullOptions says what to pull, and where to.
type PullOptions struct {
	Ref        string // "ipfs://CID" or the CID, of the root
	Containerd Containerd

	Name        string // the image's name in containerd; default: the CID as in Ref
	Platform    string // such as "linux/arm64"; default: this machine's
	Snapshotter string // in containerd's configuration; default [DefaultSnapshotter]

	Daemon   Daemon            // required
	Progress progress.Reporter // default: none
}

// PullResult is what was pulled, and how long each part of it took.
type PullResult struct {
	Name     string // in containerd
	CID      cid.Cid
	Target   ocispec.Descriptor // the image's index or manifest
	Platform string

	Layers       int   // of the platform's manifest
	FetchedFull  int   // layers that were fetched whole, as they could not be lazy
	FetchedBytes int64 // of documents, and of layers fetched whole

	Resolve  time.Duration // until the root descriptor was there
	Metadata time.Duration // then, until the config was
	Unpack   time.Duration // then, until every layer had a snapshot
}

// Pull makes the image under a root CID an image of containerd's. Only the
// documents of one platform are fetched; the layers are left to the snapshotter,
// and those that it cannot mount lazily are fetched and unpacked by containerd.
func Pull(ctx context.Context, o PullOptions) (PullResult, error) {
	result, err := pull(ctx, o)
	if err != nil {
		return PullResult{}, fmt.Errorf("pull %s: %w", o.Ref, err)
	}
	return result, nil
}

func pull(ctx context.Context, o PullOptions) (PullResult, error) {
	c, err := oci.ParseCID(o.Ref)
	if err != nil {
		return PullResult{}, err
	}
	if o.Name == "" {
		o.Name = strings.TrimPrefix(strings.TrimPrefix(o.Ref, "ipfs://"), "/ipfs/")
	}
	if o.Snapshotter == "" {
		o.Snapshotter = DefaultSnapshotter
	}
	if o.Progress == nil {
		o.Progress = progress.Discard()
	}
	platform := platforms.DefaultSpec()
	if o.Platform != "" {
		if platform, err = platforms.Parse(o.Platform); err != nil {
			return PullResult{}, fmt.Errorf("platform %q: %w", o.Platform, err)
		}
	}
	ctx, client, err := o.Containerd.connect(ctx)
	if err != nil {
		return PullResult{}, err
	}
	defer client.Close()
	if err := checkSnapshotter(ctx, client, o.Snapshotter); err != nil {
		return PullResult{}, err
	}

	t := &transfer{options: o, cid: c, store: client.ContentStore(), depth: make(map[digest.Digest]int)}
	if o.Platform != "" {
		t.platform = platforms.Only(platform)
	}
	begin := time.Now()
	if t.root, err = readRoot(ctx, o.Daemon, c); err != nil {
		return PullResult{}, err
	}
	resolved := time.Now()
	img, err := client.Pull(ctx, c.String(),
		containerd.WithResolver(t),
		containerd.WithPlatformMatcher(platforms.Only(platform)),
		containerd.WithPullUnpack,
		containerd.WithPullSnapshotter(o.Snapshotter),
		containerd.WithImageHandler(images.HandlerFunc(t.guard)),
		containerd.WithImageHandlerWrapper(t.wrap),
	)
	if err != nil {
		return PullResult{}, err
	}
	end := time.Now()
	return PullResult{
		Name: img.Name(), CID: c, Target: t.root, Platform: platforms.FormatAll(platform),
		Layers: t.layers, FetchedFull: t.fetchedFull, FetchedBytes: t.fetchedBytes,
		Resolve: resolved.Sub(begin), Metadata: t.described.Sub(resolved), Unpack: end.Sub(t.described),
	}, nil
}

// transfer is a pull under way: the resolver that containerd asks for the image
// and its blobs, and the handlers that stand around containerd's own.
type transfer struct {
	options  PullOptions
	cid      cid.Cid
	root     ocispec.Descriptor
	store    content.Provider
	platform platforms.Matcher // nil if none was asked for

	mu           sync.Mutex
	depth        map[digest.Digest]int // of indexes below the root
	layers       int
	fetchedFull  int
	fetchedBytes int64
	described    time.Time // the config was there
}

var _ remotes.Resolver = (*transfer)(nil)

// Resolve implements [remotes.Resolver]. The name it gives is the one that the
// image gets.
func (t *transfer) Resolve(context.Context, string) (string, ocispec.Descriptor, error) {
	return t.options.Name, t.root, nil
}

// Fetcher implements [remotes.Resolver].
func (t *transfer) Fetcher(context.Context, string) (remotes.Fetcher, error) {
	from := fetcher{t.options.Daemon}
	return remotes.FetcherFunc(func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
		r, err := from.open(ctx, desc)
		if err != nil {
			return nil, err
		}
		task := t.options.Progress.Task("fetch "+desc.Digest.Encoded()[:12], desc.Size)
		t.mu.Lock()
		defer t.mu.Unlock()
		if oci.KindOf(desc.MediaType) == oci.Layer {
			t.fetchedFull++
		}
		return &watched{blobReader: r, transfer: t, task: task}, nil
	}), nil
}

// Pusher implements [remotes.Resolver]; what a CID names cannot be changed.
func (t *transfer) Pusher(context.Context, string) (remotes.Pusher, error) {
	return nil, errdefs.ErrNotImplemented
}

// watched counts what is read of a blob.
type watched struct {
	*blobReader
	transfer *transfer
	task     progress.Task
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.blobReader.Read(p)
	w.task.Add(int64(n))
	w.transfer.mu.Lock()
	defer w.transfer.mu.Unlock()
	w.transfer.fetchedBytes += int64(n)
	return n, err
}

func (w *watched) Close() error {
	w.task.Done("fetched")
	return w.blobReader.Close()
}

// guard comes before containerd's handlers: nothing is fetched by a descriptor
// that is not sound.
func (t *transfer) guard(_ context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	return nil, oci.Check(desc)
}

// wrap stands around containerd's handlers. It bounds the tree of documents,
// notes how far the pull is, and tells the snapshotter of each layer's CID,
// also when the image was pushed by another tool, which left it in the URLs.
func (t *transfer) wrap(inner images.Handler) images.Handler {
	inner = snapshotters.AppendInfoHandlerWrapper(t.cid.String())(inner)
	return images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := inner.Handle(ctx, desc)
		switch kind := oci.KindOf(desc.MediaType); {
		case err != nil && kind == oci.Index && errdefs.IsNotFound(err):
			return nil, fmt.Errorf("index %s: %w (%w); see with `ipfs-stargz inspect %s` what there is, and choose with --platform", desc.Digest, oci.ErrNoPlatform, err, t.cid)
		case err != nil:
			return nil, err
		case kind == oci.Index:
			err = t.descend(desc, children)
		case kind == oci.Manifest:
			err = t.label(children)
		case kind == oci.Config:
			err = t.checkPlatform(ctx, desc)
		}
		return children, err
	})
}

// checkPlatform refuses the config of an image for another platform than was
// asked for. An index has been asked before; an image without one has only this.
func (t *transfer) checkPlatform(ctx context.Context, config ocispec.Descriptor) error {
	t.mu.Lock()
	t.described = time.Now()
	t.mu.Unlock()
	if t.platform == nil {
		return nil
	}
	p, err := images.ConfigPlatform(ctx, t.store, config)
	if err != nil {
		return fmt.Errorf("image config %s: %w", config.Digest, err)
	}
	if !t.platform.Match(p) {
		return fmt.Errorf("the image is for %s, not for %s: %w", platforms.FormatAll(p), t.options.Platform, oci.ErrNoPlatform)
	}
	return nil
}

// descend bounds how deep indexes are nested.
func (t *transfer) descend(parent ocispec.Descriptor, children []ocispec.Descriptor) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	depth := t.depth[parent.Digest] + 1
	if depth > oci.MaxIndexDepth {
		return fmt.Errorf("index %s is nested more than %d deep: %w", parent.Digest, oci.MaxIndexDepth, oci.ErrLimit)
	}
	for _, c := range children {
		t.depth[c.Digest] = max(t.depth[c.Digest], depth)
	}
	return nil
}

// label annotates the layers among children with their CIDs.
func (t *transfer) label(children []ocispec.Descriptor) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range children {
		c := &children[i]
		if oci.KindOf(c.MediaType) != oci.Layer {
			continue
		}
		if t.layers++; t.layers > oci.MaxLayers {
			return fmt.Errorf("the manifest has more than %d layers: %w", oci.MaxLayers, oci.ErrLimit)
		}
		if err := oci.Check(*c); err != nil { // a lazy layer does not come by guard
			return err
		}
		// AppendInfoHandlerWrapper has made the map.
		if root, err := oci.CID(*c); err == nil {
			c.Annotations[oci.AnnotationCID] = root.String()
		}
	}
	return nil
}
