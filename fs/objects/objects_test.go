package objects

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// The tests of this package need root: they mount FUSE and overlayfs.

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
		return
	}
	goleak.VerifyTestMain(m)
}

func testLog(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// TestSmallObjectIsNativeAtOnce checks that a file of one chunk is read from
// the cache's file system on its first open: FUSE sees the look-up, no open.
func TestSmallObjectIsNativeAtOnce(t *testing.T) {
	src := newSource()
	one, small, big := src.add(3_000_000, 4<<20), src.add(500_000, 100_000), src.add(3_000_000, 1<<20)
	v := newView(t, src, Config{SmallSize: 1 << 20}, 0)
	for _, k := range []struct {
		what  string
		key   [32]byte
		opens int64
	}{{"one chunk, large", one, 0}, {"several chunks, small", small, 0}, {"several chunks, large", big, 1}} {
		before := counted(&v.stats().OpenSeconds)
		got, err := os.ReadFile(v.paths[k.key])
		if err != nil {
			t.Fatalf("%s: %v", k.what, err)
		}
		if !bytes.Equal(got, src.data[k.key]) {
			t.Errorf("%s: other bytes", k.what)
		}
		if n := counted(&v.stats().OpenSeconds) - before; n != k.opens {
			t.Errorf("%s: %d opens met FUSE, want %d", k.what, n, k.opens)
		}
		// What is read through FUSE is there a moment later.
		eventually(t, k.what+", read whole, is in the cache", func() bool { return v.cache.Has(k.key) })
	}
	for chunk, n := range src.reads {
		if n != 1 {
			t.Errorf("chunk %s was fetched %d times", chunk, n)
		}
	}
}

// TestCopyUp checks that what a container does to a file that it never opened
// works: the kernel copies the contents up, through the same answers.
func TestCopyUp(t *testing.T) {
	src := newSource()
	var keys [6][32]byte
	for i := range keys {
		keys[i] = src.add(int64(1000*(i+1)), 4<<20)
	}
	v := newView(t, src, Config{SmallSize: 1 << 20}, 0)
	p := func(i int) string { return v.paths[keys[i]] }
	for what, err := range map[string]error{
		"chmod":    os.Chmod(p(0), 0o600),
		"chown":    os.Chown(p(1), 12, 13),
		"truncate": os.Truncate(p(2), 10),
		"rename":   os.Rename(p(3), p(3)+".new"),
		"link":     os.Link(p(4), p(4)+".link"),
		"xattr":    unix.Setxattr(p(5), "user.x", []byte("y"), 0),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i, want := range [][]byte{src.data[keys[0]], src.data[keys[1]], src.data[keys[2]][:10]} {
		if got, err := os.ReadFile(p(i)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("file %d after copy-up: %d bytes, %v", i, len(got), err)
		}
	}
	if got, err := os.ReadFile(p(3) + ".new"); err != nil || !bytes.Equal(got, src.data[keys[3]]) {
		t.Errorf("renamed: %d bytes, %v", len(got), err)
	}
	if got, err := os.ReadFile(p(4) + ".link"); err != nil || !bytes.Equal(got, src.data[keys[4]]) {
		t.Errorf("linked: %d bytes, %v", len(got), err)
	}
}

// TestRandomRanges compares many readers' ranges of a file of several chunks
// with the original, while it becomes complete.
func TestRandomRanges(t *testing.T) {
	src := newSource()
	k := src.add(9_000_123, 1<<20)
	v := newView(t, src, Config{SmallSize: 1000}, 0)
	want := src.data[k]
	var wg sync.WaitGroup
	for seed := range uint64(8) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, 1))
			f, err := os.Open(v.paths[k])
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			for range 25 {
				off := r.IntN(len(want))
				b := make([]byte, r.IntN(300_000))
				n, err := f.ReadAt(b, int64(off))
				if err != nil && !errors.Is(err, io.EOF) {
					t.Error(err)
				}
				if end := min(off+len(b), len(want)); n != end-off || !bytes.Equal(b[:n], want[off:end]) {
					t.Errorf("range %d+%d: %d other bytes", off, len(b), n)
				}
			}
		})
	}
	wg.Wait()
	for chunk, n := range src.reads {
		if n != 1 {
			t.Errorf("chunk %s was fetched %d times", chunk, n)
		}
	}
	eventually(t, "all that was read is stored", v.server.loader.idle)
	if len(src.reads) == 9 && !v.cache.Has(k) {
		t.Error("all chunks were read, and the object is not complete")
	}
}

// TestFailureAndRecovery checks that a read that cannot be answered is an
// error, for files opened in either way, and that it works once it can be.
func TestFailureAndRecovery(t *testing.T) {
	src := newSource()
	small, big := src.add(1000, 4<<20), src.add(3_000_000, 1<<20)
	v := newView(t, src, Config{SmallSize: 1000}, 0)
	src.set(func() { src.err = errors.New("nobody has it") })
	if _, err := os.ReadFile(v.paths[small]); !errors.Is(err, syscall.EIO) {
		t.Errorf("small: %v, want EIO", err)
	}
	f, err := os.Open(v.paths[big])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 3_000_000)
	if _, err := f.ReadAt(b[:10], 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("big: %v, want EIO", err)
	}
	src.set(func() { src.err = nil })
	if got, err := os.ReadFile(v.paths[small]); err != nil || !bytes.Equal(got, src.data[small]) {
		t.Errorf("small, again: %v", err)
	}
	if _, err := f.ReadAt(b, 0); err != nil || !bytes.Equal(b, src.data[big]) {
		t.Errorf("big, the same descriptor again: %v", err)
	}
}

func TestNotThere(t *testing.T) {
	src := newSource()
	k := src.add(1000, 4<<20)
	v := newView(t, src, Config{SmallSize: 1000}, 0)
	src.set(func() { delete(src.objects, k) })
	if _, err := os.ReadFile(v.paths[k]); err == nil {
		t.Error("read an object that no layer has")
	}
	for _, name := range []string{"zz", "0", k.String()[:63], k.String() + "0", k.String(), "00" + k.String()[2:]} {
		if _, err := os.Stat(v.server.cfg.Dir + "/" + name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v, want ENOENT", name, err)
		}
	}
}

// TestImpatience checks that opening a file waits for a slow network only so
// long, and its read then for as long as it takes.
func TestImpatience(t *testing.T) {
	src := newSource()
	k := src.add(1000, 4<<20)
	v := newView(t, src, Config{SmallSize: 1, Patience: 20 * time.Millisecond}, 0)
	gate := make(chan struct{})
	src.set(func() { src.gate = gate })
	f, err := os.Open(v.paths[k])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n := counted(&v.stats().OpenSeconds); n != 1 {
		t.Fatalf("%d opens met FUSE, want 1", n)
	}
	go func() {
		for v.waitingReads() == 0 {
			time.Sleep(time.Millisecond)
		}
		close(gate)
	}()
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, src.data[k]) {
		t.Errorf("%v", err)
	}
	mustFetchOnce(t, src) // what was on its way went on
}

func (v *view) waitingReads() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.waiting
}

// TestFullDisk checks that files are readable that the cache has no room for.
func TestFullDisk(t *testing.T) {
	src := newSource()
	one, several, fits := src.add(3_000_000, 4<<20), src.add(5_000_000, 1<<20), src.add(10_000, 1<<20)
	v := newView(t, src, Config{SmallSize: 1}, 2<<20)
	for range 2 {
		for _, k := range [][32]byte{one, several, fits} {
			if got, err := os.ReadFile(v.paths[k]); err != nil || !bytes.Equal(got, src.data[k]) {
				t.Errorf("%d bytes of %d: %v", len(got), len(src.data[k]), err)
			}
		}
	}
	if v.cache.Has(one) || v.cache.Has(several) {
		t.Error("complete on a disk where it has no room")
	}
	if v.stats().CacheErrors.Load() == 0 {
		t.Error("no error of the cache was counted")
	}
}

// TestLiar checks that an object whose size layers disagree on is read with the
// size that its bytes have.
func TestLiar(t *testing.T) {
	src := newSource()
	k := src.add(1000, 4<<20)
	src.claims[k] = 10
	v := newView(t, src, Config{SmallSize: 1000}, 0)
	if got, err := os.ReadFile(v.paths[k]); err != nil || !bytes.Equal(got, src.data[k]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

const childEnv = "OBJECTS_TEST_CHILD"

// child reads a file with plain system calls, so that the Go runtime hides no
// EINTR.
func child() {
	fd, err := syscall.Open(os.Args[1], syscall.O_RDONLY, 0)
	if err == nil {
		_, err = syscall.Read(fd, make([]byte, 10))
	}
	if err != nil {
		os.Stdout.WriteString(err.Error())
		os.Exit(1)
	}
	os.Stdout.WriteString("ok")
}

// start runs a child that reads k, and waits until its read has arrived.
func (v *view) start(k [32]byte) (*exec.Cmd, *bytes.Buffer) {
	v.t.Helper()
	before := v.waitingReads()
	cmd := exec.Command(os.Args[0], v.paths[k])
	cmd.Env = append(os.Environ(), childEnv+"=1")
	out := new(bytes.Buffer)
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	for v.waitingReads() == before {
		time.Sleep(time.Millisecond)
	}
	return cmd, out
}

// TestSignals checks that a reader that waits for the network can be killed at
// once, in its open and in its read, and that a signal that it handles is
// nothing to it.
func TestSignals(t *testing.T) {
	src := newSource()
	opened := [2][32]byte{src.add(1000, 4<<20), src.add(2000, 4<<20)}
	read := [2][32]byte{src.add(3_000_000, 1<<20), src.add(3_000_001, 1<<20)}
	gate := make(chan struct{})
	src.gate = gate
	v := newView(t, src, Config{SmallSize: 1, Patience: time.Minute}, 0)
	type running struct {
		cmd *exec.Cmd
		out *bytes.Buffer
	}
	var signalled []running
	for _, k := range [][2][32]byte{opened, read} {
		killed, _ := v.start(k[0])
		if err := killed.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = killed.Wait() // hangs if it cannot be killed
		if k == opened {
			// A look-up ends with its last reader. A read does not: the kernel
			// asks for pages on nobody's behalf.
			for v.waitingReads() > 0 {
				time.Sleep(time.Millisecond)
			}
		}
		cmd, out := v.start(k[1])
		signalled = append(signalled, running{cmd, out})
		for range 5 {
			// The Go runtime handles SIGURG, and does nothing on it.
			if err := cmd.Process.Signal(syscall.SIGURG); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	close(gate)
	for _, r := range signalled {
		if err := r.cmd.Wait(); err != nil {
			t.Errorf("a handled signal made it fail: %v: %s", err, r.out)
		}
	}
}
