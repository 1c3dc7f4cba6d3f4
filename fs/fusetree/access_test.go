package fusetree

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// TestPermissions has other users read.
func TestPermissions(t *testing.T) {
	private, open, shared := reg("private", []byte("1")), reg("open", []byte("2")), reg("shared", []byte("3"))
	private.Mode, shared.Mode = 0o600, 0o640
	shared.Xattrs = []layer.Xattr{{Name: erofs.XattrACL, Value: acl(1000)}}
	m := newMount(t, []file{private, open, shared}, passthrough())
	over := m.overlay(t, m.cfg.Dir)
	for _, c := range []struct {
		uid  uint32
		name string
		want string
	}{
		{0, "private", "1"},
		{1000, "private", ""},
		{1000, "open", "2"},
		{1000, "shared", "3"},
		{1001, "shared", ""},
	} {
		for _, dir := range []string{m.cfg.Dir, over} {
			out, err := command(t, c.uid, "/bin/cat", filepath.Join(dir, c.name)).Output()
			if string(out) != c.want || (err == nil) != (c.want != "") {
				t.Errorf("user %d reads %q of %s in %s: %v", c.uid, out, c.name, dir, err)
			}
		}
	}
}

// TestPrograms runs a program of the tree as a container does: by an overlay.
func TestPrograms(t *testing.T) {
	program, err := os.ReadFile("/bin/cat")
	if err != nil {
		t.Fatal(err)
	}
	for name, complete := range map[string]bool{"complete": true, "missing": false} {
		t.Run(name, func(t *testing.T) {
			cat := reg("bin/cat", program)
			cat.Mode = 0o755
			m := newMount(t, []file{cat, reg("file", []byte("content"))}, passthrough())
			if complete {
				m.store.completeAll(t)
			}
			over := m.overlay(t, m.cfg.Dir)
			// By a shell, which executes it when it is no part of this process.
			out, err := command(t, 0, "/bin/sh", "-c", `"$0/bin/cat" "$0/file"`, over).CombinedOutput()
			if string(out) != "content" {
				t.Errorf("%q, %v", out, err)
			}
			if err := command(t, 0, "/bin/sh", "-c", `"$0/bin/cat" "$0/file"`, m.cfg.Dir).Run(); err == nil {
				t.Error("the tree's own mount runs programs")
			}
		})
	}
}

// TestKilledReader kills a reader that waits for contents.
func TestKilledReader(t *testing.T) {
	for name, cfg := range map[string]Config{"in its read": passthrough(), "in its open": {Passthrough: 10, SmallSize: 1 << 20}} {
		t.Run(name, func(t *testing.T) {
			m := newMount(t, []file{reg("file", random(1, 200_000))}, cfg)
			open := m.store.shut()
			defer open()
			cmd := command(t, 0, "/bin/cat", m.path("file"))
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the reader", func() bool { return m.store.reads.Load()+m.store.loads.Load() > 0 })
			if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			err := cmd.Wait()
			if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
				t.Errorf("%v", err)
			}
			// Nobody else is harmed.
			open()
			mustRead(t, m.path("file"), m.store.data[cacheKey(random(1, 200_000))])
		})
	}
}

// TestCloseWhileReading closes the server under readers that wait for contents,
// with an overlay over it.
func TestCloseWhileReading(t *testing.T) {
	m := newMount(t, []file{reg("file", random(1, 200_000)), reg("other", random(2, 200_000))}, Config{Passthrough: 10, SmallSize: 1 << 20})
	over := m.overlay(t, m.cfg.Dir)
	defer m.store.shut()()
	errs := make(chan error, 2)
	for _, path := range []string{m.path("file"), filepath.Join(over, "other")} {
		go func() {
			_, err := os.ReadFile(path)
			errs <- err
		}()
	}
	eventually(t, "the readers", func() bool { return m.store.loads.Load() == 2 })
	m.close(t)
	for range 2 {
		select {
		case err := <-errs:
			if err == nil {
				t.Error("read what never came")
			}
		case <-time.After(long):
			t.Fatal("a reader waits on")
		}
	}
	if _, err := os.ReadFile(filepath.Join(over, "file")); err == nil {
		t.Error("reads on after Close")
	}
}

// TestIDMapped shows a mount id-mapped.
func TestIDMapped(t *testing.T) {
	one := reg("one", []byte("1"))
	one.UID, one.GID = 1, 2
	cfg := passthrough()
	cfg.IDMapped = true
	m := newMount(t, []file{one}, cfg)
	// A process of its own has the user namespace that says how.
	sleeper := command(t, 0, "/bin/sleep", "1000")
	mapping := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
	sleeper.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: mapping, GidMappings: mapping}
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = sleeper.Process.Kill()
		_ = sleeper.Wait()
	}()
	userns, err := os.Open(filepath.Join("/proc", strconv.Itoa(sleeper.Process.Pid), "ns/user"))
	if err != nil {
		t.Fatal(err)
	}
	defer userns.Close()
	fd, err := unix.OpenTree(-1, m.cfg.Dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, "one", &st, 0); err != nil || st.Uid != 100001 || st.Gid != 100002 {
		t.Errorf("owner %d:%d, %v", st.Uid, st.Gid, err)
	}
	if err := unix.Fstatat(unix.AT_FDCWD, m.path("one"), &st, 0); err != nil || st.Uid != 1 || st.Gid != 2 {
		t.Errorf("owner %d:%d without the mapping, %v", st.Uid, st.Gid, err)
	}
}

func TestMountErrors(t *testing.T) {
	m := newMount(t, nil, passthrough())
	cfg := m.cfg
	cfg.Dir = filepath.Join(m.root, "none")
	if _, err := Mount(cfg); err == nil || !strings.Contains(err.Error(), cfg.Dir) {
		t.Error(err)
	}
	m.close(t)
	if err := m.Close(); err == nil || !strings.Contains(err.Error(), m.cfg.Dir) {
		t.Errorf("closed twice: %v", err)
	}
}
