// Package convert makes the image that is pushed from the image that is there:
// its layers become eStargz, its documents are written anew around them, from
// the bottom up, and every blob is handed over to be stored in IPFS, whose CID
// goes into the descriptor that the next document holds.
//
// The result depends on the source image, the chosen platforms and the files to
// put first alone.
package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/ipfs/go-cid"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/ipfs-stargz/ipfs-stargz/image/estargz"
	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
	"github.com/ipfs-stargz/ipfs-stargz/image/progress"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/importer"
)

// ErrMissing is wrapped by errors about blobs that the source does not have.
var ErrMissing = errors.New("the image is not complete here")

// ErrNonDistributable is wrapped by the error about a layer that its owner does
// not allow to be passed on.
var ErrNonDistributable = errors.New("non-distributable layer")

// Job says what to convert and with what.
type Job struct {
	Source content.Provider   // has the image's blobs
	Root   ocispec.Descriptor // its index or manifest
	Choice oci.Choice         // of its platforms
	Dir    string             // takes what is made; the caller removes it

	// Layer converts one layer.
	Layer LayerFunc
	// First has, for some layers by the digest of their blob in Source, the paths
	// of the files to put first. These layers are made anew, also those that are
	// lazy already.
	First map[digest.Digest][]string
	// Store puts a blob of the result into IPFS. It is called for many at once,
	// and for each digest once. A blob comes after all that it refers to.
	Store func(ctx context.Context, b Blob) (cid.Cid, error)

	Progress progress.Reporter
}

// Blob is what there is to store.
type Blob struct {
	ocispec.Descriptor
	Reader io.Reader      // of its bytes, once
	Cuts   []importer.Cut // where it may be cut into blocks; none if it is no lazy layer
}

// LayerFunc writes the eStargz form of the layer src, which is a tar, plain or
// compressed with gzip or zstd, to dst, with the files called first before the
// others.
type LayerFunc func(ctx context.Context, src *io.SectionReader, dst io.Writer, first []string) (estargz.Digests, error)

// With returns the LayerFunc that uses package estargz. Which files come first
// each layer has for itself.
func With(o estargz.Options) LayerFunc {
	return func(ctx context.Context, src *io.SectionReader, dst io.Writer, first []string) (estargz.Digests, error) {
		o := o // each call has its own: layers are converted at once
		o.Prioritized = first
		made, err := estargz.Convert(ctx, dst, src, o)
		return made.Digests, err
	}
}

// Result is the image that was made.
type Result struct {
	Root  ocispec.Descriptor   // with its CID among its URLs
	Blobs []ocispec.Descriptor // all of the image, each after those it refers to
	CIDs  []cid.Cid            // of Blobs, in the same order

	Converted int      // distinct layers that became eStargz
	Kept      int      // distinct layers that were lazy already
	Plain     int      // distinct layers that are neither
	Warnings  []string // as they were given to Progress
}

// Run does the job. On an error, what was stored so far stays stored.
func Run(ctx context.Context, job Job) (Result, error) {
	r := &run{
		Job:    job,
		source: fetcher(job.Source),
		slots:  semaphore.NewWeighted(int64(runtime.GOMAXPROCS(0))),
		blobs:  make(map[digest.Digest]*blob),
		layers: make(map[digest.Digest]*future),
	}
	tree, err := oci.ReadTree(ctx, r.source, job.Root)
	if err != nil {
		return Result{}, err
	}
	r.picked, err = job.Choice.Pick(ctx, r.source, tree)
	if err != nil {
		return Result{}, err
	}
	root, err := r.node(ctx, tree)
	if err != nil {
		return Result{}, err
	}
	if root == nil {
		return Result{}, fmt.Errorf("index %s has no entries, there is nothing to push: %w", job.Root.Digest, oci.ErrInvalid)
	}
	r.result.Root = *root
	r.list(*root, make(map[digest.Digest]bool))
	return r.result, nil
}

// run is a job under way.
type run struct {
	Job
	source remotes.Fetcher
	picked map[*oci.Node]bool
	slots  *semaphore.Weighted // blobs converted or stored at once

	mu       sync.Mutex
	blobs    map[digest.Digest]*blob   // of the result
	layers   map[digest.Digest]*future // of the source
	replaced sync.Map                  // digest of a manifest → that of the one made of it
	result   Result
}

// blob is a blob of the result.
type blob struct {
	once sync.Once
	cid  cid.Cid
	err  error

	children []ocispec.Descriptor // of a document
}

// fetcher reads whole blobs of a provider, and says what to do about those that
// are not there.
func fetcher(p content.Provider) remotes.Fetcher {
	return remotes.FetcherFunc(func(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
		ra, err := open(ctx, p, desc)
		if err != nil {
			return nil, err
		}
		return readCloser{io.NewSectionReader(ra, 0, ra.Size()), ra}, nil
	})
}

type readCloser struct {
	io.Reader
	io.Closer
}

// open opens a blob of the source and checks its size.
func open(ctx context.Context, p content.Provider, desc ocispec.Descriptor) (content.ReaderAt, error) {
	ra, err := p.ReaderAt(ctx, desc)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("%s %s is not there (%w); pull the image again with all its contents (ctr images pull, not lazily, and for each platform to push), or choose with --platform what is there", desc.MediaType, desc.Digest, ErrMissing)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", desc.Digest, err)
	}
	if ra.Size() != desc.Size {
		ra.Close()
		return nil, fmt.Errorf("%s %s: its descriptor says %d bytes, it has %d: %w", desc.MediaType, desc.Digest, desc.Size, ra.Size(), oci.ErrInvalid)
	}
	return ra, nil
}

// node converts what is below n; nil if nothing of it was chosen.
func (r *run) node(ctx context.Context, n *oci.Node) (*ocispec.Descriptor, error) {
	if n.Index != nil {
		return r.index(ctx, n)
	}
	if !r.picked[n] {
		return nil, nil
	}
	if oci.KindOf(n.Desc.MediaType) == oci.Manifest {
		return r.manifest(ctx, n)
	}
	return r.keep(ctx, n.Desc)
}

// index writes an index of those of its entries that were chosen.
func (r *run) index(ctx context.Context, n *oci.Node) (*ocispec.Descriptor, error) {
	made := make([]*ocispec.Descriptor, len(n.Children))
	g, gctx := errgroup.WithContext(ctx)
	for i, child := range n.Children {
		g.Go(func() (err error) {
			made[i], err = r.node(gctx, child)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	index := *n.Index
	index.MediaType = ocispec.MediaTypeImageIndex
	index.Manifests = nil
	for _, d := range made {
		if d != nil {
			index.Manifests = append(index.Manifests, *d)
		}
	}
	if len(index.Manifests) == 0 {
		return nil, nil
	}
	r.retarget(index.Manifests)
	return r.document(ctx, n.Desc, index, index.Manifests)
}

// retarget lets BuildKit's attestations name the manifests that replaced those
// which they were made for.
func (r *run) retarget(entries []ocispec.Descriptor) {
	const key = "vnd.docker.reference.digest"
	for i, d := range entries {
		if !oci.IsAttestation(d) {
			continue
		}
		if now, ok := r.replaced.Load(digest.Digest(d.Annotations[key])); ok {
			entries[i].Annotations = maps.Clone(d.Annotations)
			entries[i].Annotations[key] = now.(digest.Digest).String()
		}
	}
}

// manifest writes a manifest anew around its converted layers and config.
func (r *run) manifest(ctx context.Context, n *oci.Node) (*ocispec.Descriptor, error) {
	if n.Manifest == nil {
		if err := n.ReadManifest(ctx, r.source); err != nil {
			return nil, err
		}
	}
	manifest := *n.Manifest
	manifest.MediaType = ocispec.MediaTypeImageManifest
	manifest.Layers = make([]ocispec.Descriptor, len(n.Manifest.Layers))
	diffIDs := make([]digest.Digest, len(n.Manifest.Layers))
	g, gctx := errgroup.WithContext(ctx)
	for i, d := range n.Manifest.Layers {
		g.Go(func() error {
			var made *ocispec.Descriptor
			var err error
			if oci.KindOf(d.MediaType) == oci.Layer {
				made, diffIDs[i], err = r.layer(gctx, d)
			} else {
				made, err = r.keep(gctx, d)
			}
			if err != nil {
				return err
			}
			manifest.Layers[i] = *made
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	config, err := r.config(ctx, *n.Manifest, diffIDs)
	if err != nil {
		return nil, err
	}
	manifest.Config = *config
	made, err := r.document(ctx, n.Desc, manifest, append([]ocispec.Descriptor{manifest.Config}, manifest.Layers...))
	if err != nil {
		return nil, err
	}
	r.replaced.Store(n.Desc.Digest, made.Digest)
	return made, nil
}

// config writes the config of manifest with new diff IDs; those that are ""
// stay. A config in which nothing changes is kept byte for byte.
func (r *run) config(ctx context.Context, manifest ocispec.Manifest, diffIDs []digest.Digest) (*ocispec.Descriptor, error) {
	if !oci.IsImage(&manifest) {
		return r.keep(ctx, manifest.Config)
	}
	config, err := oci.ReadConfig(ctx, r.source, manifest)
	if err != nil {
		return nil, err
	}
	changed := false
	for i, id := range diffIDs {
		if id != "" && id != config.RootFS.DiffIDs[i] {
			config.RootFS.DiffIDs[i] = id
			changed = true
		}
	}
	if !changed {
		return r.keep(ctx, manifest.Config)
	}
	// All that is not known here goes through as it is.
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(config.Raw, &fields); err != nil {
		return nil, fmt.Errorf("image config %s: %w: %w", manifest.Config.Digest, err, oci.ErrInvalid)
	}
	if fields["rootfs"], err = json.Marshal(config.RootFS); err != nil {
		return nil, err
	}
	return r.document(ctx, manifest.Config, fields, nil)
}

// document writes v in the place of old, as a new blob that refers to children.
func (r *run) document(ctx context.Context, old ocispec.Descriptor, v any, children []ocispec.Descriptor) (*ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	desc := old
	desc.MediaType = converter.ConvertDockerMediaTypeToOCI(old.MediaType)
	desc.Size = int64(len(data))
	desc.Data = nil
	if desc.Digest, err = r.work().add(data); err != nil {
		return nil, fmt.Errorf("write the new form of %s: %w", old.Digest, err)
	}
	if err := oci.Check(desc); err != nil { // it can have grown over the limit
		return nil, err
	}
	return r.store(ctx, desc, r.work(), children)
}

// keep stores a blob of the source as it is.
func (r *run) keep(ctx context.Context, desc ocispec.Descriptor) (*ocispec.Descriptor, error) {
	desc.MediaType = converter.ConvertDockerMediaTypeToOCI(desc.MediaType)
	return r.store(ctx, desc, r.Source, nil)
}
