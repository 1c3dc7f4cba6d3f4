package fs_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/mounts"
)

// The tests of this package need root: they mount EROFS, FUSE and overlayfs.

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// store holds layers' blobs by name, and can be unplugged.
type store struct {
	// How file systems that read from it are started.
	mode       string // empty: auto
	stateFiles bool

	mu    sync.Mutex
	blobs map[string][]byte
	down  bool
	bytes int // read so far
	reads int // of these
}

var errDown = errors.New("no peer has it")

func (s *store) open(_ context.Context, cid string) (layer.Source, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, errDown
	}
	if _, ok := s.blobs[cid]; !ok {
		return nil, fmt.Errorf("%s: %w", cid, errDown)
	}
	return blob{s, cid}, nil
}

func (s *store) read() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

func (s *store) counts() (reads, bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads, s.bytes
}

func (s *store) unplug(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

type blob struct {
	s   *store
	cid string
}

func (b blob) Size() int64 { return int64(len(b.s.blobs[b.cid])) }

func (b blob) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	if b.s.down {
		return 0, errDown
	}
	b.s.bytes += len(p)
	b.s.reads++
	return bytes.NewReader(b.s.blobs[b.cid]).ReadAt(p, off)
}

type file struct {
	name, body string
	link       string
	dir        bool
	first      bool // before the landmark
}

// add makes an eStargz layer and returns the digest of its TOC.
func (s *store) add(t *testing.T, cid string, files ...file) string {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	var first []string
	for _, f := range files {
		if f.first {
			first = append(first, f.name)
		}
		h := &tar.Header{Name: f.name, Mode: 0o755, Size: int64(len(f.body)), Typeflag: tar.TypeReg, ModTime: time.Unix(1e9, 0)}
		switch {
		case f.dir:
			h.Typeflag = tar.TypeDir
		case f.link != "":
			h.Typeflag, h.Linkname = tar.TypeLink, f.link
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := estargz.Build(io.NewSectionReader(bytes.NewReader(buf.Bytes()), 0, int64(buf.Len())), estargz.WithChunkSize(100_000), estargz.WithPrioritizedFiles(first))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	out, err := io.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	if s.blobs == nil {
		s.blobs = map[string][]byte{}
	}
	s.blobs[cid] = out
	return b.TOCDigest().String()
}

func random(seed byte, n int) string {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return string(b)
}

// fuseAlone is mode fuse on a kernel whose overlayfs takes no data-only layers.
const fuseAlone = "fuse alone"

// inModes runs a test in both modes, and with FUSE alone.
func inModes(t *testing.T, test func(t *testing.T, mode string)) {
	in(t, test, mounts.ModeKernel, mounts.ModeFUSE, fuseAlone)
}

// in runs a test in some of them.
func in(t *testing.T, test func(t *testing.T, mode string), modes ...string) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) { test(t, mode) })
	}
}

// inMode returns the configuration in the store's mode.
func (s *store) inMode(cfg fs.Config) fs.Config {
	cfg.Mode = cmp.Or(s.mode, mounts.ModeAuto)
	if s.mode == fuseAlone {
		cfg.Mode = mounts.ModeFUSE
		cfg.Probe = func(ctx context.Context, dir string) (*mounts.Kernel, error) {
			k, err := mounts.Probe(ctx, dir)
			if k != nil {
				k.Names = ""
			}
			return k, err
		}
	}
	return cfg
}

func start(t testing.TB, root string, s *store) *fs.FS {
	t.Helper()
	return startLogging(t, root, s, t.Output(), slog.LevelInfo)
}

// startLogging is like start; what is logged from a level on is written to log.
func startLogging(t testing.TB, root string, s *store, log io.Writer, level slog.Level) *fs.FS {
	t.Helper()
	f, err := fs.New(t.Context(), s.inMode(fs.Config{
		Root: root, Open: s.open, StateFiles: s.stateFiles, SmallObject: 1 << 20, LookupPatience: 10 * time.Second,
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: level})),
	}))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// running is like start; the file system is stopped, and its trees unmounted,
// when the test ends.
func running(t *testing.T, root string, s *store) *fs.FS {
	f := start(t, root, s)
	t.Cleanup(func() { stop(t, f) })
	return f
}

// stop unmounts all and stops the file system.
func stop(t testing.TB, f *fs.FS) {
	t.Helper()
	if err := errors.Join(f.Retain(nil, nil), f.Close()); err != nil {
		t.Error(err)
	}
}

func add(t *testing.T, f *fs.FS, cid, toc string, on ...string) {
	t.Helper()
	if _, _, err := f.Add(t.Context(), cid, toc, "", fs.Run{CIDs: on}); err != nil {
		t.Fatal(err)
	}
}

// overlay mounts what a container would get.
func overlay(t *testing.T, f *fs.FS, cids ...string) (dir string, umount func()) {
	t.Helper()
	tree, err := f.Tree(t.Context(), fs.Run{CIDs: cids})
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if err := f.MountOverlay(dir, fs.Overlay{Lower: []string{tree}}); err != nil {
		t.Fatal(err)
	}
	return dir, sync.OnceFunc(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
}

func mustRead(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	} else if string(got) != want {
		t.Errorf("%s: %d bytes, not the %d it should have", path, len(got), len(want))
	}
}

func mountsBelow(t *testing.T, below string) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(b)) {
		if strings.HasPrefix(strings.Fields(l)[4], below+"/") {
			n++
		}
	}
	return n
}

func cacheUsage(t *testing.T, f *fs.FS) cache.Usage {
	t.Helper()
	s, err := f.State()
	if err != nil {
		t.Fatal(err)
	}
	return s.Cache
}
