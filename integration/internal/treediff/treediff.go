// Package treediff tells in what two file trees differ: names, kinds, modes,
// owners, sizes, times, link targets, device numbers, which names are links of
// one inode, extended attributes and contents.
//
// The integration tests hold a lazily mounted image against containerd's own
// unpack with it, file by file.
package treediff

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Tree is what was found below a root: "." is the root itself.
type Tree map[string]Node

// Node is one name of a tree.
type Node struct {
	Mode     uint32 // as in stat(2): kind, permissions, setuid, setgid, sticky
	UID, GID uint32
	Size     int64 // bytes, of a regular file
	ModTime  time.Time
	Rdev     uint64            // of a device
	Target   string            // of a symbolic link
	Link     string            // the first name, in order, of the same inode
	Xattrs   map[string]string // without trusted.overlay.*
	SHA256   string            // of a regular file's contents
}

// Scan reads the tree below root. Paths in ignore, relative to root, are left
// out with all below them.
func Scan(root string, ignore ...string) (Tree, error) {
	t := Tree{}
	type inode struct{ dev, ino uint64 }
	first := map[inode]string{}
	err := filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if slices.Contains(ignore, name) {
			if entry.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		node, st, err := read(path)
		if err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		if st.Nlink > 1 && node.Mode&unix.S_IFMT != unix.S_IFDIR {
			// Names come in the walk's order, which is the same in both trees.
			key := inode{st.Dev, st.Ino}
			if _, ok := first[key]; !ok {
				first[key] = name
			}
			node.Link = first[key]
		} else {
			node.Link = name
		}
		t[name] = node
		return nil
	})
	return t, err
}

func read(path string) (Node, unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return Node{}, st, fmt.Errorf("lstat: %w", err)
	}
	n := Node{Mode: st.Mode, UID: st.Uid, GID: st.Gid, ModTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec).UTC()}
	var err error
	if n.Xattrs, err = xattrs(path); err != nil {
		return n, st, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n.Size = st.Size
		n.SHA256, err = digest(path)
	case unix.S_IFLNK:
		n.Target, err = os.Readlink(path)
	case unix.S_IFCHR, unix.S_IFBLK:
		n.Rdev = st.Rdev
	}
	return n, st, err
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	// Page-sized reads would make a test of a slow file system out of this.
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, f, make([]byte, 1<<20)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func xattrs(path string) (map[string]string, error) {
	list, err := grow(func(b []byte) (int, error) { return unix.Llistxattr(path, b) })
	if err != nil {
		return nil, fmt.Errorf("listxattr: %w", err)
	}
	var m map[string]string
	for name := range strings.SplitSeq(strings.TrimRight(string(list), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		value, err := grow(func(b []byte) (int, error) { return unix.Lgetxattr(path, name, b) })
		if err != nil {
			return nil, fmt.Errorf("getxattr %s: %w", name, err)
		}
		if m == nil {
			m = map[string]string{}
		}
		m[name] = string(value)
	}
	return m, nil
}

// grow calls read with as large a buffer as it wants.
func grow(read func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := read(nil)
		if errors.Is(err, unix.ENOTSUP) {
			return nil, nil
		}
		if err != nil || n == 0 {
			return nil, err
		}
		b := make([]byte, n)
		n, err = read(b)
		if errors.Is(err, unix.ERANGE) {
			continue
		}
		return b[:max(n, 0)], err
	}
}

// Diff says in what got is not want, one line for each name, sorted; none if
// the trees are equal.
func Diff(want, got Tree) []string {
	names := maps.Clone(want)
	maps.Copy(names, got)
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(names)) {
		w, inWant := want[name]
		g, inGot := got[name]
		switch {
		case !inGot:
			lines = append(lines, fmt.Sprintf("%q is missing (%s)", name, kind(w.Mode)))
		case !inWant:
			lines = append(lines, fmt.Sprintf("%q is too many (%s)", name, kind(g.Mode)))
		default:
			if d := w.diff(g); len(d) > 0 {
				lines = append(lines, fmt.Sprintf("%q: %s", name, strings.Join(d, "; ")))
			}
		}
	}
	return lines
}

func (n Node) diff(got Node) []string {
	var d []string
	note := func(what string, want, got any) {
		if want != got {
			d = append(d, fmt.Sprintf("%s %v, want %v", what, got, want))
		}
	}
	note("kind", kind(n.Mode), kind(got.Mode))
	note("mode", fmt.Sprintf("%04o", n.Mode&^unix.S_IFMT), fmt.Sprintf("%04o", got.Mode&^unix.S_IFMT))
	note("uid", n.UID, got.UID)
	note("gid", n.GID, got.GID)
	note("size", n.Size, got.Size)
	note("mtime", n.ModTime.Format(time.RFC3339Nano), got.ModTime.Format(time.RFC3339Nano))
	note("device", device(n.Rdev), device(got.Rdev))
	note("target", fmt.Sprintf("%q", n.Target), fmt.Sprintf("%q", got.Target))
	note("same inode as", fmt.Sprintf("%q", n.Link), fmt.Sprintf("%q", got.Link))
	note("xattrs", fmt.Sprintf("%q", n.Xattrs), fmt.Sprintf("%q", got.Xattrs))
	note("sha256", n.SHA256, got.SHA256)
	return d
}

func device(rdev uint64) string { return fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev)) }

func kind(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "folder"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFIFO:
		return "FIFO"
	case unix.S_IFSOCK:
		return "socket"
	default:
		return fmt.Sprintf("mode %o", mode)
	}
}
