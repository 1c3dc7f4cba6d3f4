package integration

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/stargz-snapshotter/estargz"
	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/fs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/snapshotter"
)

// blobs are layers by CID. It is the network of these tests, and its finder.
type blobs map[string][]byte

func (b blobs) open(_ context.Context, cid string) (layer.Source, error) {
	data, ok := b[cid]
	if !ok {
		return nil, errors.New("nobody has it")
	}
	return source{bytes.NewReader(data)}, nil
}

// Find finds a layer whose "digest" is its CID.
func (b blobs) Find(_ context.Context, root, layerDigest string) (string, string, error) {
	if root != imageCID {
		return "", "", fmt.Errorf("unexpected root %q", root)
	}
	return layerDigest, "", nil
}

type source struct{ *bytes.Reader }

func (s source) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return s.Reader.ReadAt(p, off)
}

// add makes an eStargz layer of files and gives the digest of its TOC.
func (b blobs) add(t *testing.T, cid string, files map[string]string) string {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for name, body := range files {
		h := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(body)), Typeflag: tar.TypeReg, ModTime: time.Unix(1e9, 0)}
		if err := errors.Join(w.WriteHeader(h), write(w, body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	blob, err := estargz.Build(io.NewSectionReader(bytes.NewReader(buf.Bytes()), 0, int64(buf.Len())))
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	if b[cid], err = io.ReadAll(blob); err != nil {
		t.Fatal(err)
	}
	return blob.TOCDigest().String()
}

func write(w io.Writer, s string) error {
	_, err := io.WriteString(w, s)
	return err
}

const imageCID = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"

// stack is a snapshotter over a real file system plane, in this process.
type stack struct {
	*snapshotter.Snapshotter
	files *fs.FS
	t     *testing.T
	ctx   context.Context
	root  string
	mode  string
	blobs blobs
}

func newStack(t *testing.T, b blobs, mode string) *stack {
	t.Helper()
	s := &stack{t: t, ctx: namespaces.WithNamespace(t.Context(), "test"), root: t.TempDir(), mode: mode, blobs: b}
	s.start()
	t.Cleanup(s.stop)
	return s
}

func (s *stack) start() {
	s.t.Helper()
	log := slog.New(slog.NewTextHandler(s.t.Output(), nil))
	var err error
	s.files, err = fs.New(s.ctx, fs.Config{Root: s.root, Open: s.blobs.open, Mode: s.mode, SmallObject: 1 << 20, LookupPatience: 10 * time.Second, Log: log})
	s.must(err)
	s.Snapshotter, err = snapshotter.New(snapshotter.Config{
		Root: s.root, Lazy: s.files, Mounter: s.files, Finder: s.blobs, ResolveTimeout: 10 * time.Second, Log: log,
	})
	s.must(err)
}

func (s *stack) stop() {
	s.t.Helper()
	if err := errors.Join(s.Close(), s.files.Close()); err != nil {
		s.t.Error(err)
	}
}

func (s *stack) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// lazy prepares a layer that is to become lazy and gives the name of the
// snapshot that it became.
func (s *stack) lazy(target, parent string, labels map[string]string) string {
	s.t.Helper()
	labels[snapshots.LabelSnapshotRef] = target
	_, err := s.Prepare(s.ctx, "extract "+target+time.Now().String(), parent, snapshots.WithLabels(labels))
	if !errdefs.IsAlreadyExists(err) {
		s.t.Fatalf("prepare %s: %v, want that it exists", target, err)
	}
	// As containerd looks for it.
	var name string
	s.must(s.Walk(s.ctx, func(_ context.Context, i snapshots.Info) error {
		if i.Kind != snapshots.KindCommitted {
			s.t.Errorf("%s is %v", i.Name, i.Kind)
		}
		name = i.Name
		return nil
	}, fmt.Sprintf("labels.%q==%s,parent==%q", snapshots.LabelSnapshotRef, target, parent)))
	if name == "" {
		s.t.Fatalf("no snapshot for %s on %q", target, parent)
	}
	return name
}

// within mounts a snapshot as containerd does, for the time of fn.
func (s *stack) within(m []mount.Mount, fn func(dir string)) {
	s.t.Helper()
	dir := s.t.TempDir()
	s.must(mount.All(m, dir))
	defer func() { s.must(mount.UnmountAll(dir, 0)) }()
	fn(dir)
}

func (s *stack) has(dir, name, want string) {
	s.t.Helper()
	if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
		s.t.Errorf("%s: %q, %v, want %q", name, got, err, want)
	}
}

// mountedBelow are the mounts of the stack, without what serves objects.
func (s *stack) mountedBelow() (n int) {
	s.t.Helper()
	info, err := os.ReadFile("/proc/self/mountinfo")
	s.must(err)
	for line := range strings.Lines(string(info)) {
		if dir := strings.Fields(line)[4]; strings.HasPrefix(dir, s.root+"/") && !strings.HasPrefix(dir, s.root+"/fuse") {
			n++
		}
	}
	return n
}

// TestSnapshots goes through the life of lazy and normal snapshots on one
// another, with every method of a snapshotter.
func TestSnapshots(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) { snapshotsLife(t, mode) })
	}
}

func snapshotsLife(t *testing.T, mode string) {
	b := blobs{}
	toc := b.add(t, "one", map[string]string{"a": "lower", "b": "b"})
	b.add(t, "two", map[string]string{"a": "upper", ".wh.b": ""})
	s := newStack(t, b, mode)
	one := s.lazy("sha256:1", "", map[string]string{"containerd.io/snapshot/ipfs-stargz.cid": "one", "containerd.io/snapshot/stargz/toc.digest": toc})
	two := s.lazy("sha256:2", one, map[string]string{"containerd.io/snapshot/remote/urls": "https://nowhere,ipfs://two"})
	if again := s.lazy("sha256:2", one, map[string]string{"containerd.io/snapshot/remote/urls": "ipfs://two"}); again != two {
		t.Errorf("the same layer on the same parent is two snapshots: %s, %s", two, again)
	}
	// On another parent it is another; and CRI tells no more than this.
	onNothing := s.lazy("sha256:2", "", map[string]string{
		"containerd.io/snapshot/cri.image-ref": "localhost:5050/ipfs/" + imageCID + ":latest", "containerd.io/snapshot/cri.layer-digest": "two",
	})
	if onNothing == two {
		t.Error("one snapshot on two parents")
	}

	if n := s.mountedBelow(); n != 0 {
		t.Errorf("%d mounts for layers that nobody looks at", n)
	}
	usage, err := s.Usage(s.ctx, one)
	s.must(err)
	if usage.Size <= 0 || usage.Inodes != 2 {
		t.Errorf("usage of a lazy snapshot: %+v", usage)
	}
	info, err := s.Stat(s.ctx, two)
	s.must(err)
	if info.Parent != one || info.Kind != snapshots.KindCommitted {
		t.Errorf("stat: %+v", info)
	}
	// Whoever replaces all labels takes no layer away.
	info.Labels = map[string]string{"x": "y"}
	info, err = s.Update(s.ctx, info)
	s.must(err)
	if len(info.Labels) != 1 {
		t.Errorf("labels after an update: %v", info.Labels)
	}

	active, err := s.Prepare(s.ctx, "active", two)
	s.must(err)
	s.within(active, func(dir string) {
		s.has(dir, "a", "upper")
		if _, err := os.Lstat(filepath.Join(dir, "b")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("b is there: %v", err)
		}
		s.must(os.WriteFile(filepath.Join(dir, "new"), []byte("new"), 0o644))
		s.must(os.WriteFile(filepath.Join(dir, "a"), []byte("changed"), 0o644))
	})
	if usage, err := s.Usage(s.ctx, "active"); err != nil || usage.Inodes < 2 {
		t.Errorf("usage of an active snapshot: %+v, %v", usage, err)
	}
	view, err := s.View(s.ctx, "view", two)
	s.must(err)
	s.within(view, func(dir string) {
		s.has(dir, "a", "upper")
		if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o644); !errors.Is(err, unix.EROFS) {
			t.Errorf("write to a view: %v", err)
		}
	})
	if _, err := s.Stat(s.ctx, "nothing"); !errdefs.IsNotFound(err) {
		t.Errorf("stat of nothing: %v", err)
	}
	if err := s.Remove(s.ctx, two); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("remove of a parent: %v", err)
	}

	// A normal layer on lazy ones, and a lazy one on that.
	s.must(s.Commit(s.ctx, "normal", "active"))
	b.add(t, "three", map[string]string{"c": "c", ".wh.new": ""})
	three := s.lazy("sha256:3", "normal", map[string]string{"containerd.io/snapshot/ipfs-stargz.cid": "three"})
	top, err := s.Prepare(s.ctx, "top", three)
	s.must(err)
	s.within(top, func(dir string) {
		s.has(dir, "a", "changed")
		s.has(dir, "c", "c")
		if _, err := os.Lstat(filepath.Join(dir, "new")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("new is there: %v", err)
		}
	})

	// A key that is taken is an error, not a layer that is there.
	_, err = s.Prepare(s.ctx, "top", "", snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotRef: "sha256:9", "containerd.io/snapshot/ipfs-stargz.cid": "one",
	}))
	if !errdefs.IsAlreadyExists(err) {
		t.Errorf("prepare with a key that is taken: %v", err)
	}
	s.must(s.Walk(s.ctx, func(_ context.Context, i snapshots.Info) error {
		t.Errorf("%s was made of it", i.Name)
		return nil
	}, fmt.Sprintf("labels.%q==%s", snapshots.LabelSnapshotRef, "sha256:9")))

	// A restart; then, as after a reboot, nothing is mounted any more.
	s.stop()
	s.start()
	top, err = s.Mounts(s.ctx, "top")
	s.must(err)
	s.within(top, func(dir string) { s.has(dir, "c", "c") })
	mounts, err := filepath.Glob(filepath.Join(s.root, "*", "*", "m"))
	s.must(err)
	for range 2 { // overlays hold trees
		for _, m := range mounts {
			_ = unix.Unmount(m, unix.MNT_DETACH)
		}
	}
	if n := s.mountedBelow(); n != 0 {
		t.Fatalf("%d mounts are left", n)
	}
	top, err = s.Mounts(s.ctx, "top")
	s.must(err)
	s.within(top, func(dir string) {
		s.has(dir, "a", "changed")
		s.has(dir, "c", "c")
	})

	for _, key := range []string{"top", three, "normal", "view", two, onNothing, one} {
		s.must(s.Remove(s.ctx, key))
	}
	s.must(s.Cleanup(s.ctx))
	if n := s.mountedBelow(); n != 0 {
		t.Errorf("%d mounts are left of snapshots that are gone", n)
	}
	for _, dir := range []string{"s", "layers", "trees", "trash"} {
		if left, err := os.ReadDir(filepath.Join(s.root, dir)); err == nil && len(left) > 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
}

// TestNotLazy checks that what cannot be lazy is unpacked as ever.
func TestNotLazy(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) { notLazy(t, mode) })
	}
}

func notLazy(t *testing.T, mode string) {
	b := blobs{"plain": []byte("no tar at all")}
	toc := b.add(t, "one", map[string]string{"a": "a"})
	b.add(t, "other", map[string]string{"b": "b"})
	s := newStack(t, b, mode)
	one := s.lazy("sha256:1", "", map[string]string{"containerd.io/snapshot/ipfs-stargz.cid": "one"})
	for name, labels := range map[string]map[string]string{
		"no source":       {},
		"gone":            {"containerd.io/snapshot/ipfs-stargz.cid": "gone"},
		"not eStargz":     {"containerd.io/snapshot/ipfs-stargz.cid": "plain"},
		"wrong TOC":       {"containerd.io/snapshot/ipfs-stargz.cid": "other", "containerd.io/snapshot/stargz/toc.digest": toc},
		"another's image": {"containerd.io/snapshot/cri.image-ref": "docker.io/library/debian:12", "containerd.io/snapshot/cri.layer-digest": "one"},
	} {
		for _, parent := range []string{"", one} {
			key := name + " on " + parent
			labels[snapshots.LabelSnapshotRef] = "sha256:" + key
			m, err := s.Prepare(s.ctx, key, parent, snapshots.WithLabels(labels))
			if err != nil || len(m) != 1 {
				t.Errorf("%s: %v, %v", key, m, err)
				continue
			}
			// containerd writes into the upper directory of one overlay, and
			// looks at every lower one.
			for _, o := range m[0].Options {
				if lower, ok := strings.CutPrefix(o, "lowerdir="); ok {
					for dir := range strings.SplitSeq(lower, ":") {
						if _, err := os.Stat(filepath.Join(dir, "a")); err != nil {
							t.Errorf("%s: lower directory %q: %v", key, dir, err)
						}
					}
				}
			}
			s.within(m, func(dir string) { s.must(os.WriteFile(filepath.Join(dir, "unpacked"), nil, 0o644)) })
			s.must(s.Remove(s.ctx, key))
		}
	}
	s.must(s.Remove(s.ctx, one))
	s.must(s.Cleanup(s.ctx))
}
