package fusetree

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/internal/backing"
	"github.com/ipfs-stargz/ipfs-stargz/fs/internal/histogram"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/tree"
)

// A test process that serves a mount must not be stopped by the kernel while it
// waits for that mount. So nothing here maps or executes a file of a mount, and no
// child is started while one is open here: between fork and exec, when all of Go
// may wait for the child, the child closes what was open, and closing asks the
// server. Children are given paths, and have directory and program elsewhere.

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// file is an entry with its contents.
type file struct {
	layer.Entry
	content []byte
}

func reg(name string, content []byte) file {
	e := layer.Entry{Name: name, Type: layer.Reg, Mode: 0o644, Size: int64(len(content))}
	if len(content) > 0 {
		e.Key = sha256.Sum256(content)
	}
	return file{e, content}
}

func directory(name string) file {
	return file{Entry: layer.Entry{Name: name, Type: layer.Dir, Mode: 0o755}}
}

func random(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// store is [Objects] in memory, of which some are complete in a cache.
type store struct {
	dir   string // of the cache
	reads atomic.Int64
	loads atomic.Int64

	mu   sync.Mutex
	data map[cache.Key][]byte
	gate chan struct{} // until it is closed, reads and loads wait, if it is not nil
	err  error
}

func (s *store) wait(ctx context.Context) error {
	s.mu.Lock()
	gate, err := s.gate, s.err
	s.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (s *store) get(key cache.Key) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data[key]
}

func (s *store) ReadAt(ctx context.Context, key cache.Key, dst []byte, off int64) (int, error) {
	s.reads.Add(1)
	if err := s.wait(ctx); err != nil {
		return 0, err
	}
	b := s.get(key)
	return copy(dst, b[min(off, int64(len(b))):]), nil
}

func (s *store) Load(ctx context.Context, key cache.Key) (bool, error) {
	s.loads.Add(1)
	if err := s.wait(ctx); err != nil {
		return false, err
	}
	return true, s.complete(key)
}

func (s *store) Open(key cache.Key) (*os.File, error) {
	return os.Open(filepath.Join(s.dir, key.String()))
}

// complete puts an object into the cache.
func (s *store) complete(key cache.Key) error {
	f, err := os.CreateTemp(s.dir, "tmp")
	if err != nil {
		return err
	}
	_, err = f.Write(s.get(key))
	return errors.Join(err, f.Close(), os.Rename(f.Name(), filepath.Join(s.dir, key.String())))
}

func (s *store) completeAll(t testing.TB) {
	t.Helper()
	for key := range s.data {
		if err := s.complete(key); err != nil {
			t.Fatal(err)
		}
	}
}

// shut makes all that is asked for wait until open is called.
func (s *store) shut() (open func()) {
	gate := make(chan struct{})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gate = gate
	return sync.OnceFunc(func() { close(gate) })
}

// mount is a mounted image.
type mount struct {
	*Server
	store *store
	image string // its file
	root  string // a directory that all may enter
	log   *bytes.Buffer
}

// tempDir is t.TempDir that others may enter.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "fusetree")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func buildImage(t testing.TB, path string, files []file, opts tree.Options) {
	t.Helper()
	entries := make([]layer.Entry, len(files))
	for i, f := range files {
		entries[i] = f.Entry
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := tree.Build(context.Background(), f, [][]layer.Entry{entries}, opts); err != nil {
		t.Fatal(err)
	}
}

// newMount mounts the image of a layer until the test ends.
func newMount(t testing.TB, files []file, cfg Config) *mount {
	t.Helper()
	return newMountOf(t, files, tree.Options{}, cfg)
}

func newMountOf(t testing.TB, files []file, opts tree.Options, cfg Config) *mount {
	t.Helper()
	m := &mount{root: tempDir(t), log: new(bytes.Buffer)}
	m.image = filepath.Join(m.root, "image")
	buildImage(t, m.image, files, opts)
	m.store = &store{dir: filepath.Join(m.root, "objects"), data: map[cache.Key][]byte{}}
	cfg.Dir = filepath.Join(m.root, "m")
	for _, dir := range []string{m.store.dir, cfg.Dir} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range files {
		if len(f.content) > 0 {
			m.store.data[f.Key] = f.content
		}
	}
	var err error
	if cfg.Image, err = erofs.Open(m.image); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cfg.Image.Close(); err != nil {
			t.Error(err)
		}
	})
	cfg.Objects, cfg.Cache = m.store, m.store.dir
	cfg.Log = slog.New(slog.NewTextHandler(m.log, nil))
	if m.Server, err = Mount(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.close(t)
		if m.log.Len() > 0 {
			t.Logf("log:\n%s", m.log)
		}
	})
	return m
}

// passthrough is the configuration with which the kernel reads by itself.
func passthrough() Config { return Config{Passthrough: backing.Limit} }

// close closes the server if that is not done yet, and checks that nothing is left.
func (m *mount) close(t testing.TB) {
	t.Helper()
	select {
	case <-m.served:
		return
	default:
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(b), m.cfg.Dir+" ") {
		t.Errorf("%s is still mounted, %v", m.cfg.Dir, err)
	}
}

func (m *mount) path(name string) string { return filepath.Join(m.cfg.Dir, name) }

// overlay mounts an overlay over lower directories, topmost first, until the test
// ends.
func (m *mount) overlay(t testing.TB, lower string) string {
	t.Helper()
	dirs := map[string]string{}
	for _, name := range []string{"o", "upper", "work"} {
		dirs[name] = filepath.Join(m.root, name)
		if err := os.Mkdir(dirs[name], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	opts := "lowerdir=" + lower + ",upperdir=" + dirs["upper"] + ",workdir=" + dirs["work"]
	mountUntilEnd(t, "overlay", dirs["o"], "overlay", 0, opts)
	return dirs["o"]
}

func mountUntilEnd(t testing.TB, source, target, fstype string, flags uintptr, opts string) {
	t.Helper()
	if err := unix.Mount(source, target, fstype, flags, opts); err != nil {
		t.Fatalf("%s: %v", opts, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// mustRead reads a file by read(2) and compares it.
func mustRead(t testing.TB, path string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, want %d, equal %t, %v", path, len(got), len(want), bytes.Equal(got, want), err)
	}
}

// long is a bound for what happens at once but on the slowest machine.
const long = 2 * time.Minute

// command prepares a child that is killed after a long time.
func command(t testing.TB, uid uint32, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), long)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return cmd
}

// eventually waits for what is sure to come.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(long); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

// count returns how many there were.
func count(h *histogram.Histogram) int64 {
	_, _, n := h.Snapshot()
	return n
}

func cacheKey(b []byte) cache.Key { return sha256.Sum256(b) }
