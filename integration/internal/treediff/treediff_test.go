package treediff

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDiff changes one thing of a copy at a time and wants it named, alone.
func TestDiff(t *testing.T) {
	moment := time.Unix(1_700_000_000, 123_456_789)
	for _, test := range []struct {
		name   string
		change func(root string) error
		want   string // in the only line, or "" for no line
	}{
		{"nothing", func(string) error { return nil }, ""},
		{"ignored", func(root string) error {
			return errors.Join(os.WriteFile(root+"/ignored/file", nil, 0o644), os.WriteFile(root+"/at", nil, 0o644))
		}, ""},
		{"added", func(root string) error { return unix.Mkfifo(root+"/fifo2", 0o600) }, `"fifo2" is too many (FIFO)`},
		{"removed", func(root string) error { return os.Remove(root + "/link") }, `"link" is missing (symbolic link)`},
		{"mode", func(root string) error { return unix.Chmod(root+"/file", 0o4755) }, `"file": mode 4755, want 0644`},
		{"owner", func(root string) error { return os.Lchown(root+"/link", 7, 0) }, `"link": uid 7, want 0`},
		{"time", func(root string) error { return os.Chtimes(root+"/file", moment, moment.Add(time.Nanosecond)) }, `"file": mtime 2023-11-14T22:13:20.12345679Z, want`},
		{"contents", func(root string) error { return rewrite(root+"/file", "some text!", moment) }, `"file": sha256`},
		{"size", func(root string) error { return rewrite(root+"/file", "some", moment) }, `"file": size 4, want 10; sha256`},
		{"target", func(root string) error { return relink(root+"/link", "elsewhere", moment) }, `"link": target "elsewhere", want "file"`},
		{"xattr", func(root string) error { return unix.Setxattr(root+"/file", "user.x", []byte("y"), 0) }, `"file": xattrs map["user.x":"y"], want`},
		{"xattr of overlay", func(root string) error { return unix.Setxattr(root+"/file", "trusted.overlay.x", []byte("y"), 0) }, ""},
		{"hard link", func(root string) error {
			if err := os.Remove(root + "/twin"); err != nil {
				return err
			}
			return rewrite(root+"/twin", "twins", moment)
		}, `"twin": same inode as "twin", want "first"`},
		{"device", func(root string) error {
			if err := os.Remove(root + "/null"); err != nil {
				return err
			}
			if err := unix.Mknod(root+"/null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))); err != nil {
				return err
			}
			return os.Chtimes(root+"/null", moment, moment)
		}, `"null": device 1:5, want 1:3`},
		{"kind", func(root string) error {
			if err := os.Remove(root + "/fifo"); err != nil {
				return err
			}
			return rewrite(root+"/fifo", "", moment)
		}, `"fifo": kind file, want FIFO; mode 0644, want 0600; sha256`},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, b := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
			for _, root := range []string{a, b} {
				if err := plant(root, moment); err != nil {
					t.Fatal(err)
				}
			}
			if err := test.change(b); err != nil {
				t.Fatal(err)
			}
			for _, root := range []string{a, b} {
				if err := os.Chtimes(root, moment, moment); err != nil {
					t.Fatal(err)
				}
			}
			want, err := Scan(a, "ignored", "at")
			if err != nil {
				t.Fatal(err)
			}
			got, err := Scan(b, "ignored", "at")
			if err != nil {
				t.Fatal(err)
			}
			lines := Diff(want, got)
			if test.want == "" && len(lines) == 0 {
				return
			}
			if len(lines) != 1 || !strings.HasPrefix(lines[0], test.want) || test.want == "" {
				t.Errorf("got %q, want one line: %q", lines, test.want)
			}
		})
	}
}

// plant makes a tree with one of each kind, each with the same time.
func plant(root string, moment time.Time) error {
	if out, err := exec.Command("sh", "-ec", `
mkdir -p "$1/ignored"; cd "$1"; umask 022
printf 'some text.' >file; ln -s file link; printf twins >first; ln first twin; mkfifo -m 600 fifo; mknod -m 600 null c 1 3`, "sh", root).CombinedOutput(); err != nil {
		return &exec.Error{Name: string(out), Err: err}
	}
	names, err := filepath.Glob(root + "/*")
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := touch(name, moment); err != nil {
			return err
		}
	}
	return nil
}

func rewrite(path, text string, moment time.Time) error {
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return err
	}
	return touch(path, moment)
}

func relink(path, target string, moment time.Time) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	if err := os.Symlink(target, path); err != nil {
		return err
	}
	return touch(path, moment)
}

func touch(path string, moment time.Time) error {
	ts := unix.NsecToTimespec(moment.UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}
