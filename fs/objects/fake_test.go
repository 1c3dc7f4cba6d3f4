package objects

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/internal/histogram"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// source is a [Contents] over bytes in memory, which a test can make slow, or
// fail, or lie.
type source struct {
	mu      sync.Mutex
	objects map[cache.Key]layer.Object
	data    map[cache.Key][]byte
	claims  map[cache.Key]int64 // sizes that a liar gives, until it is found out
	reads   map[string]int      // of each chunk
	err     error
	gate    chan struct{} // while it is open, reads wait; their context ends that too
	waiting int
	asked   []ask // in order
	most    int   // waiting at once
}

// ask is a call of ReadChunk.
type ask struct {
	chunk  int
	raised <-chan struct{} // nil: somebody waits
}

func newSource() *source {
	return &source{
		objects: map[cache.Key]layer.Object{}, data: map[cache.Key][]byte{},
		claims: map[cache.Key]int64{}, reads: map[string]int{},
	}
}

// add makes an object of random bytes in chunks of at most chunkSize.
func (s *source) add(size, chunkSize int64) cache.Key {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(len(s.objects)), byte(size)}).Read(b)
	obj := layer.Object{Size: size, Key: sha256.Sum256(b)}
	for off := int64(0); off < size; off += chunkSize {
		n := min(chunkSize, size-off)
		obj.Chunks = append(obj.Chunks, layer.Chunk{Offset: off, Size: n, Digest: sha256.Sum256(b[off : off+n])})
	}
	s.objects[obj.Key], s.data[obj.Key] = obj, b
	return obj.Key
}

func (s *source) set(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
}

func (s *source) Find(k cache.Key) (layer.Object, bool, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	obj, ok := s.objects[k]
	if size, lied := s.claims[k]; lied {
		obj.Size, obj.Chunks = size, []layer.Chunk{{Size: size, Digest: obj.Chunks[0].Digest}}
		return obj, false, ok
	}
	return obj, true, ok
}

func (s *source) FindID(id uint64) (cache.Key, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.objects {
		if k.ID() == id {
			return k, true
		}
	}
	return cache.Key{}, false
}

func (s *source) ReadChunk(ctx context.Context, obj layer.Object, i int, room func() []byte) error {
	s.mu.Lock()
	s.reads[fmt.Sprint(obj.Key, i)]++
	gate, err, data := s.gate, s.err, s.data[obj.Key]
	_, lie := s.claims[obj.Key]
	delete(s.claims, obj.Key)
	s.waiting++
	s.most = max(s.most, s.waiting)
	raised, _ := layer.Background(ctx)
	s.asked = append(s.asked, ask{i, raised})
	s.mu.Unlock()
	defer s.set(func() { s.waiting-- })
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if lie {
		return fmt.Errorf("found out: %w", layer.ErrChunk)
	}
	if err != nil {
		return err
	}
	copy(room(), data[obj.Chunks[i].Offset:])
	return nil
}

// view is an overlay over a directory of names that point at the source's
// objects, a cache, and the FUSE mount: all that a container has but EROFS.
type view struct {
	*source
	t      *testing.T
	dir    string // where the overlay is mounted
	cache  *cache.Cache
	server *Server
	paths  map[cache.Key]string
}

// newView mounts a view of the source's objects. With cacheBytes the cache is
// on a file system of that size.
func newView(t *testing.T, src *source, cfg Config, cacheBytes int64) *view {
	t.Helper()
	root := t.TempDir()
	v := &view{source: src, t: t, dir: filepath.Join(root, "o"), paths: map[cache.Key]string{}}
	for _, d := range []string{"o", "names", "cache", "fuse", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if cacheBytes > 0 {
		dir := filepath.Join(root, "cache")
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", cacheBytes)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { v.unmount(dir) })
	}
	for k, obj := range src.objects {
		p := filepath.Join(root, "names", k.String()[:8])
		v.paths[k] = filepath.Join(v.dir, k.String()[:8])
		err := os.WriteFile(p, nil, 0o644)
		if err == nil {
			err = os.Truncate(p, obj.Size)
		}
		if err == nil {
			err = unix.Setxattr(p, "trusted.overlay.metacopy", nil, 0)
		}
		if err == nil {
			err = unix.Setxattr(p, "trusted.overlay.redirect", []byte("/"+k.String()), 0)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if v.cache, err = cache.Open(cache.Options{Dir: filepath.Join(root, "cache")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.cache.Close() })
	cfg.Dir = filepath.Join(root, "fuse")
	if cfg.Patience == 0 {
		cfg.Patience = 10 * time.Second
	}
	cfg.Log = testLog(t)
	loader := NewLoader(src, v.cache)
	t.Cleanup(loader.Close)
	if v.server, err = Mount(cfg, loader); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.server.Close(); err != nil {
			t.Error(err)
		}
	})
	opts := fmt.Sprintf("lowerdir=%s::%s::%s,upperdir=%s,workdir=%s",
		filepath.Join(root, "names"), v.cache.Dir(), cfg.Dir, filepath.Join(root, "upper"), filepath.Join(root, "work"))
	if err := unix.Mount("overlay", v.dir, "overlay", 0, opts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.unmount(v.dir) })
	return v
}

func (v *view) unmount(dir string) {
	if err := unix.Unmount(dir, 0); err != nil {
		v.t.Errorf("unmount %s: %v", dir, err)
	}
}

func (v *view) stats() *Stats { return v.server.loader.Stats() }

// counted is how many durations a histogram has.
func counted(h *histogram.Histogram) int64 {
	_, _, n := h.Snapshot()
	return n
}
