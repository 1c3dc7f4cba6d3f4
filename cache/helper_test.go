package cache

import (
	"bytes"
	"crypto/sha256"
	"io"
	"iter"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/cache/internal/kernel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// contents returns n chunks of random bytes, reproducible by seed.
func contents(seed uint64, sizes ...int64) (data []byte, chunks []Chunk) {
	r := rand.NewChaCha8([32]byte{byte(seed)})
	for _, n := range sizes {
		b := make([]byte, n)
		r.Read(b)
		chunks = append(chunks, Chunk{Size: n, Digest: sha256.Sum256(b)})
		data = append(data, b...)
	}
	return data, chunks
}

// mustOpen opens the cache in dir, as [mustOpenWith] does.
func mustOpen(t *testing.T, dir string) *Cache {
	t.Helper()
	return mustOpenWith(t, Options{Dir: dir})
}

// mustOpenWith opens a cache, which is killed when the test ends.
func mustOpenWith(t *testing.T, o Options) *Cache {
	t.Helper()
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	c, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(c) })
	return c
}

// kill ends a cache as the end of its process would.
func kill(c *Cache) {
	c.mu.Lock()
	closed := c.closed
	c.closed = true
	if !closed {
		for _, p := range c.partials {
			p.f.Close()
		}
	}
	c.mu.Unlock()
	if !closed {
		c.halt()
		c.root.Close()
	}
}

func mustBe(t *testing.T, c *Cache, k Key, want []byte) {
	t.Helper()
	f, err := c.OpenObject(k)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("object %s has %d other bytes than the %d put in", k, len(got), len(want))
	}
}

func mustWrite(t *testing.T, p *Partial, i int, data []byte) {
	t.Helper()
	if err := p.Write(i, data); err != nil {
		t.Fatal(err)
	}
}

// object returns the contents of an object of one chunk, and its key.
func object(seed uint64, size int64) (Key, []byte) {
	data, chunks := contents(seed, size)
	return Key(chunks[0].Digest), data
}

func mustPut(t *testing.T, c *Cache, k Key, data []byte) {
	t.Helper()
	if err := c.Put(k, data); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for what happens in the background. A minute is for the
// slowest machine; nothing depends on it where all is well.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func counted(t *testing.T, c *Cache) {
	t.Helper()
	eventually(t, "the cache is counted", func() bool { return c.Usage().Counted })
}

// chill takes an object's pages out of memory.
func chill(t *testing.T, c *Cache, k Key) {
	t.Helper()
	f, err := os.Open(c.object(k))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	eventually(t, "an object is not in memory", func() bool {
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		return kernel.Cached(f) == 0
	})
}

// onDisk is what the files below a cache's directory occupy, and how many there
// are.
func onDisk(t *testing.T, c *Cache) (bytes int64, files int) {
	t.Helper()
	for _, dir := range []string{"objects", "partial", "suspect"} {
		entries, err := os.ReadDir(c.path(dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			var st unix.Stat_t
			if err := unix.Lstat(c.path(dir, e.Name()), &st); err != nil {
				t.Fatal(err)
			}
			bytes += st.Blocks * 512
			files++
		}
	}
	return bytes, files
}

// fakeLayers are layers in memory, in the order in which their objects go.
type fakeLayers struct {
	mu     sync.Mutex
	list   []*fakeLayer
	forgot int
}

type fakeLayer struct {
	id      string
	mounted bool
	keys    []Key
	chunks  map[Key][]Chunk // of those of several
}

func (l *fakeLayers) Chunks(k Key) ([]Chunk, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range l.list {
		if x.Has(k) {
			return x.chunks[k], true
		}
	}
	return nil, false
}

func (l *fakeLayers) ByUse() (layers []Layer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range l.list {
		layers = append(layers, x)
	}
	return layers
}

func (l *fakeLayers) Forget(string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgot++
}

func (l *fakeLayer) ID() string          { return l.id }
func (l *fakeLayer) Mounted() bool       { return l.mounted }
func (l *fakeLayer) Has(k Key) bool      { return slices.Contains(l.keys, k) }
func (l *fakeLayer) Keys() iter.Seq[Key] { return slices.Values(l.keys) }
