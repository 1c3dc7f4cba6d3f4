package record

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// overlay mounts an overlay with these files in its lower layer, and returns its
// path. What a test opens there is its own file system's.
func overlay(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range files {
		write(t, filepath.Join(dir, "lower", f))
	}
	root := filepath.Join(dir, "root")
	options := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	return root
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(path), 0o755); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) {
	t.Helper()
	if _, err := os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
}

// recorder returns one that has begun.
func recorder(t *testing.T, root string) *Recorder {
	t.Helper()
	r, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := r.Start(root); err != nil {
		t.Fatal(err)
	}
	return r
}

func stop(t *testing.T, r *Recorder, want ...string) {
	t.Helper()
	got, err := r.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Files, want) || got.Lost {
		t.Errorf("recorded %q (lost: %v), want %q", got.Files, got.Lost, want)
	}
}

// TestOrder opens files in every way that may or may not count.
func TestOrder(t *testing.T) {
	odd := "odd \xff\n (deleted)"
	root := overlay(t, "b", "a", "dir/c", "dir/unread", "looked-at", odd)
	at := func(name string) string { return filepath.Join(root, name) }
	if err := os.Symlink("dir/c", at("link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(at("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := recorder(t, root)
	write(t, filepath.Join(t.TempDir(), "elsewhere"))
	read(t, at("b"))
	read(t, at("link"))
	read(t, at("a"))
	read(t, at("b"))
	if _, err := os.Stat(at("looked-at")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadDir(at("dir")); err != nil {
		t.Fatal(err)
	}
	if fd, err := unix.Open(at("fifo"), unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	} else {
		unix.Close(fd)
	}
	read(t, at(odd))
	write(t, at("made"))
	stop(t, r, "b", "dir/c", "a", odd, "made")
	if _, err := r.Stop(); err != nil {
		t.Error(err)
	}
}

// TestStops shows that all that was opened before Stop counts, however slowly it
// is noted, and what comes later does not.
func TestStops(t *testing.T) {
	var files []string
	for i := range 500 {
		files = append(files, fmt.Sprintf("d%d/f%03d", i%7, i))
	}
	root := overlay(t, append(files, "late")...)
	r := recorder(t, root)
	for _, f := range files {
		read(t, filepath.Join(root, f))
	}
	got, err := r.Stop()
	if err != nil {
		t.Fatal(err)
	}
	read(t, filepath.Join(root, "late"))
	if !slices.Equal(got.Files, files) {
		t.Errorf("%d files, in this order: %q", len(got.Files), got.Files)
	}
}

// TestNameIsNoLongerTheFile has paths from the kernel that do not lead to the
// file.
func TestNameIsNoLongerTheFile(t *testing.T) {
	root := overlay(t, "a", "b")
	r := &Recorder{seen: map[string]bool{}, prefix: root + "/"}
	dir, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	r.root = dir
	f, err := os.Open(filepath.Join(root, "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Remove(filepath.Join(root, "a")); err != nil {
		t.Fatal(err)
	}
	r.file(int(f.Fd())) // its path ends in " (deleted)"
	if err := os.Link(filepath.Join(root, "b"), filepath.Join(root, "a (deleted)")); err != nil {
		t.Fatal(err)
	}
	r.file(int(f.Fd())) // and now another file has that name
	if len(r.recording.Files) > 0 {
		t.Errorf("recorded %q", r.recording.Files)
	}
}

// TestOtherMountNamespace records a process in a root and a mount namespace of
// its own, as a container is.
func TestOtherMountNamespace(t *testing.T) {
	root := overlay(t, "data")
	programs := []string{install(t, root, "cat"), install(t, root, "sleep")}
	cmd := exec.Command(programs[0], "/data", "-")
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 1)); err != nil { // its root is what it will be
		t.Fatal(err)
	}
	r := recorder(t, fmt.Sprintf("/proc/%d/root", cmd.Process.Pid))
	other := exec.Command(programs[1], "0")
	other.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Cloneflags: syscall.CLONE_NEWNS}
	if out, err := other.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got, err := r.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Files) < 2 || "/"+got.Files[0] != programs[1] || !slices.ContainsFunc(got.Files, func(f string) bool { return strings.Contains(f, "libc") }) {
		t.Errorf("recorded %q, want %q, then its libraries", got.Files, programs[1])
	}
}

// install copies a program, and the libraries that it needs, to the same paths
// below root.
func install(t *testing.T, root, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	needs, err := exec.Command("ldd", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(strings.Fields(string(needs)), path) {
		if !filepath.IsAbs(f) {
			continue
		}
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(root, f))
		if err := os.WriteFile(filepath.Join(root, f), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// TestErrors shows what is told where it cannot work.
func TestErrors(t *testing.T) {
	r, err := New()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Stop(); err == nil {
		t.Error("stopped before it began")
	}
	if err := r.Start(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if err := r.Start(t.TempDir()); err != nil {
		t.Errorf("after an error: %v", err)
	}
	if err := r.Start(t.TempDir()); err == nil {
		t.Error("began twice")
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}

	// A thread without the right for it, which ends with its goroutine.
	refusal := make(chan error)
	go func() {
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			refusal <- err
			return
		}
		_, err := New()
		refusal <- err
	}()
	if err := <-refusal; !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "root") {
		t.Errorf("without rights: %v", err)
	}
}

// TestLost has the kernel tell that its queue was full.
func TestLost(t *testing.T) {
	var r Recorder
	r.note(buffer{{Mask: unix.FAN_Q_OVERFLOW, Fd: unix.FAN_NOFD}}, unix.FAN_EVENT_METADATA_LEN)
	if !r.recording.Lost {
		t.Error("nothing is said of it")
	}
}
