package fs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/mounts"
	"github.com/ipfs-stargz/ipfs-stargz/fs/prefetch"
)

// prefetching starts a file system that fetches ahead. stop ends it, and has it
// keep these layers; it is stopped in any case when the test ends.
func prefetching(t *testing.T, root string, open fs.Opener, cfg prefetch.Config, budget ...int64) (f *fs.FS, stop func(keep ...string)) {
	t.Helper()
	cfg.Concurrency = 1
	var kept cache.Options
	if len(budget) > 0 {
		kept.Budget = budget[0]
	}
	f, err := fs.New(t.Context(), fs.Config{
		Root: root, Open: open, Mode: mounts.ModeAuto, SmallObject: 1 << 20, LookupPatience: 10 * time.Second,
		Prefetch: cfg, Cache: kept, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	stop = func(keep ...string) {
		once.Do(func() {
			if err := errors.Join(f.Retain(keep, nil), f.Close()); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { stop() })
	return f, stop
}

const patience = 2 * time.Minute // of tests: what takes longer does not come

// layersOf is what a file system says of its layers.
func layersOf(t *testing.T, f *fs.FS) []fs.Layer {
	t.Helper()
	s, err := f.State()
	if err != nil {
		t.Fatal(err)
	}
	return s.Layers
}

// awaitState waits until a layer's progress is as wanted, and returns it.
func awaitState(t *testing.T, f *fs.FS, cid string, want func(fs.Layer) bool) fs.Layer {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		last := layersOf(t, f)
		for _, l := range last {
			if l.CID == cid && l.Counted && want(l) {
				return l
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("layer %s did not get there: %+v", cid, last)
		}
	}
}

// await receives from ch, if anything comes.
func await(ch <-chan error) (got error, ok bool) {
	select {
	case got = <-ch:
		return got, true
	case <-time.After(patience):
		return nil, false
	}
}

func closed(t *testing.T, f *fs.FS) {
	t.Helper()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func inState(s prefetch.State) func(fs.Layer) bool {
	return func(l fs.Layer) bool { return l.Prefetch == s }
}

// TestPrefetch has a layer's head fetched by its pull, and the rest after a
// restart; what was fetched is read with nobody there.
func TestPrefetch(t *testing.T) {
	var s store
	head, large, rest := random(1, 5000), random(2, 350_000), random(3, 250_000)
	toc := s.add(t, "one",
		file{name: "rest", body: rest}, file{name: "head", body: head, first: true},
		file{name: "large", body: large, first: true}, file{name: "same", body: head})
	root := t.TempDir()
	f, stop := prefetching(t, root, s.open, prefetch.Config{Head: true})
	add(t, f, "one", toc)
	l := awaitState(t, f, "one", func(l fs.Layer) bool { return l.Prefetch == prefetch.Off && l.Objects == 2 })
	if l.TotalObjects != 3 || l.Bytes != int64(len(head)+len(large)) || l.TotalBytes != l.Bytes+int64(len(rest)) {
		t.Errorf("progress: %+v", l)
	}
	s.unplug(true)
	dir, umount := overlay(t, f, "one")
	defer umount()
	mustRead(t, dir+"/head", head)
	mustRead(t, dir+"/large", large)
	if _, err := os.ReadFile(dir + "/rest"); !errors.Is(err, unix.EIO) {
		t.Errorf("the rest, which is not fetched: %v", err)
	}
	umount()
	stop("one")

	s.unplug(false)
	before := s.read()
	f, _ = prefetching(t, root, s.open, prefetch.Config{Head: true, Background: true})
	awaitState(t, f, "one", func(l fs.Layer) bool { return l.Prefetch == prefetch.Done && l.Objects == 3 })
	if n := s.read() - before; n < len(rest) || n > len(rest)+len(rest)/2 {
		t.Errorf("%d bytes were read for a rest of %d", n, len(rest))
	}
	s.unplug(true)
	dir, umount = overlay(t, f, "one")
	defer umount()
	mustRead(t, dir+"/rest", rest)
	umount()
	if err := f.Retain(nil, nil); err != nil {
		t.Fatal(err)
	}
	if p := layersOf(t, f); len(p) > 0 {
		t.Errorf("of a layer that is gone: %+v", p)
	}
}

// TestPrefetchStandsBack holds up a container's read: until it is over nothing
// is fetched ahead.
func TestPrefetchStandsBack(t *testing.T) {
	var s store
	s.add(t, "read", file{name: "a", body: random(1, 5000)})
	s.add(t, "ahead", file{name: "b", body: random(2, 5000), first: true})
	gate, reading := make(chan struct{}), make(chan error)
	begun := sync.OnceFunc(func() { close(reading) })
	open := func(ctx context.Context, cid string) (layer.Source, error) {
		src, err := s.open(ctx, cid)
		if cid == "read" && err == nil {
			return &gated{src, gate, begun}, nil
		}
		return src, err
	}
	root := t.TempDir()
	// Its table of contents is there before its contents are held up.
	f := start(t, root, &s)
	add(t, f, "read", "")
	closed(t, f)
	f, _ = prefetching(t, root, open, prefetch.Config{Head: true})
	dir, umount := overlay(t, f, "read")
	done := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(dir + "/a")
		done <- err
	}()
	t.Cleanup(func() {
		if err, ok := await(done); err != nil || !ok {
			t.Errorf("the container's read: %v", err)
		}
		umount()
	})
	t.Cleanup(func() { close(gate) })
	if _, ok := await(reading); !ok {
		t.Fatal("the container's read did not begin")
	}
	add(t, f, "ahead", "")
	l := awaitState(t, f, "ahead", inState(prefetch.Waiting))
	if l.Objects != 0 || l.Reason != "containers read" {
		t.Errorf("while a container reads: %+v", l)
	}
}

// gated is a source whose reads wait for a gate.
type gated struct {
	layer.Source
	gate    chan struct{}
	reading func()
}

func (g *gated) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	g.reading()
	select {
	case <-g.gate:
		return g.Source.ReadAt(ctx, p, off)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// TestPrefetchDamaged: what a layer promised and does not have is tried once.
func TestPrefetchDamaged(t *testing.T) {
	var s store
	toc := s.add(t, "one", file{name: "a", body: random(9, 50_000)}, file{name: "b", body: random(8, 50_000)})
	damaged := bytes.Clone(s.blobs["one"])
	for i := 1000; i < 2000; i++ {
		damaged[i] ^= 0xff
	}
	s.blobs["one"] = damaged
	f, _ := prefetching(t, t.TempDir(), s.open, prefetch.Config{Background: true})
	add(t, f, "one", toc)
	if l := awaitState(t, f, "one", inState(prefetch.Done)); l.Objects != 1 || l.TotalObjects != 2 {
		t.Errorf("progress: %+v", l)
	}
}

// TestPrefetchNoRoom: what is fetched ahead has nothing evicted, of its own
// neither, and the rest is read all the same.
func TestPrefetchNoRoom(t *testing.T) {
	var s store
	var files []file
	for i := range 20 {
		files = append(files, file{name: fmt.Sprint(i), body: random(byte(i), 90_000)})
	}
	s.add(t, "one", files...)
	f, _ := prefetching(t, t.TempDir(), s.open, prefetch.Config{Background: true}, 1_000_000)
	add(t, f, "one", "")
	l := awaitState(t, f, "one", inState(prefetch.Waiting))
	if u := cacheUsage(t, f); l.Reason != "the cache has no room" || l.Objects < 5 || l.Objects > 11 || u.EvictedObjects != 0 || u.Refused != 0 {
		t.Errorf("progress: %+v, cache: %+v", l, u)
	}
	dir, umount := overlay(t, f, "one")
	defer umount()
	for _, x := range files {
		mustRead(t, filepath.Join(dir, x.name), x.body)
	}
}

// TestPrefetchLastFirst: after a restart the layer that was used last is
// fetched first.
func TestPrefetchLastFirst(t *testing.T) {
	var s store
	root := t.TempDir()
	f := start(t, root, &s)
	order := []string{"second", "third", "first"}
	for i, cid := range order {
		s.add(t, cid, file{name: cid, body: cid})
		add(t, f, cid, "")
		at := time.Unix(2e9+[]int64{20, 10, 30}[i], 0)
		if err := os.Chtimes(filepath.Join(root, "layers", cid, "layer.json"), at, at); err != nil {
			t.Fatal(err)
		}
	}
	closed(t, f)
	var mu sync.Mutex
	var opened []string
	open := func(ctx context.Context, cid string) (layer.Source, error) {
		mu.Lock()
		defer mu.Unlock()
		opened = append(opened, cid)
		return s.open(ctx, cid)
	}
	f, stop := prefetching(t, root, open, prefetch.Config{Head: true, Background: true})
	for _, cid := range order {
		awaitState(t, f, cid, inState(prefetch.Done))
	}
	stop()
	if want := []string{"first", "second", "third"}; !slices.Equal(opened, want) {
		t.Errorf("fetched in the order %q, want %q", opened, want)
	}
}
