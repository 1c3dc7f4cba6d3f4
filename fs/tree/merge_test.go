package tree

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// Short names for the entries of test layers.
func dir(name string, mode uint32) file {
	return file{Entry: layer.Entry{Name: name, Type: layer.Dir, Mode: mode}}
}

func reg(name, content string) file {
	return file{Entry: layer.Entry{Name: name, Type: layer.Reg, Mode: 0o644}, content: content}
}

func symlink(name, target string) file {
	return file{Entry: layer.Entry{Name: name, Type: layer.Symlink, LinkName: target}}
}

func hardlink(name, target string) file {
	return file{Entry: layer.Entry{Name: name, Type: layer.Hardlink, LinkName: target, Mode: 0o644}}
}

func char(name string, major, minor uint32) file {
	return file{Entry: layer.Entry{Name: name, Type: layer.Char, Mode: 0o600, Major: major, Minor: minor}}
}

func (f file) owner(uid, gid uint32) file { f.UID, f.GID = uid, gid; return f }
func (f file) chmod(mode uint32) file     { f.Mode = mode; return f }
func (f file) at(sec, nsec int64) file    { f.ModTime = time.Unix(sec, nsec); return f }
func (f file) xattr(name string, v []byte) file {
	f.addXattr(layer.Xattr{Name: name, Value: v})
	return f
}

func merge(t *testing.T, stack [][]file, opts Options) (*inode, error) {
	t.Helper()
	m, err := merged(context.Background(), layersOf(stack), opts.Below != nil)
	if err != nil {
		return nil, err
	}
	return overlay(m.uppers, opts.Below)
}

// refusal returns the error of merging layers on nothing.
func refusal(ctx context.Context, layers [][]layer.Entry) error {
	_, err := merged(ctx, layers, false)
	return err
}

// onSomething returns the options of a run that lies on layers that have every
// name, or on none.
func onSomething(below bool) (opts Options) {
	if below {
		opts.Below = func(string) (bool, error) { return true, nil }
	}
	return opts
}

// list returns a line for each name of a merged tree: its path, kind and mode,
// and, where they are not what most have, owner, links, time, attributes.
func list(root *inode) string {
	var lines []string
	var visit func(p string, in *inode)
	visit = func(p string, in *inode) {
		line := fmt.Sprintf("%s %s %o", p, [...]string{"", "dir", "reg", "sym", "hard", "chr", "blk", "fifo"}[in.kind], in.mode)
		switch {
		case in.kind == layer.Reg:
			line += fmt.Sprintf(" size=%d", in.ent.Size)
		case in.kind == layer.Symlink:
			line += " -> " + in.ent.LinkName
		case in.isWhiteout():
			line = p + " whiteout"
		case in.rdev != 0:
			line += fmt.Sprintf(" dev=%x", in.rdev)
		}
		if in.uid != 0 || in.gid != 0 {
			line += fmt.Sprintf(" %d:%d", in.uid, in.gid)
		}
		if in.sec != 0 || in.nsec != 0 {
			line += fmt.Sprintf(" @%d.%d", in.sec, in.nsec)
		}
		if in.kind != layer.Dir && in.nlink != 1 && !in.isWhiteout() {
			line += fmt.Sprintf(" links=%d", in.nlink)
		}
		if in.dir != nil && in.dir.opaque {
			line += " opaque"
		}
		for _, x := range in.xattrs {
			line += fmt.Sprintf(" %s=%q", x.Name, x.Value)
		}
		if p != "" {
			lines = append(lines, strings.TrimSpace(line))
		}
		if in.dir != nil {
			for _, e := range in.dir.entries {
				if e.name != "." && e.name != ".." {
					visit(join(p, e.name), e.ino)
				}
			}
		}
	}
	visit("", root)
	return strings.Join(lines, "\n")
}

type mergeCase struct {
	name  string
	below bool
	stack [][]file
	want  string
	err   error // reason of a refusal of the last layer
}

// Each rule of the merge once, in words. That the rules are containerd's and
// overlayfs' is for TestAsContainerd to show.
var mergeCases = []mergeCase{
	{
		name:  "implicit directories are root's",
		stack: [][]file{{reg("a/b/c", "1").owner(1, 2).at(5, 6)}},
		want:  "a dir 755\na/b dir 755\na/b/c reg 644 size=1 1:2 @5.6",
	},
	{
		name:  "implicit directories take after lower layers",
		stack: [][]file{{dir("a", 0o700).owner(3, 4).at(7, 8).xattr("user.x", []byte("y"))}, {reg("a/b/c", "1")}},
		want:  "a dir 700 3:4 @7.8 user.x=\"y\"\na/b dir 755\na/b/c reg 644 size=1",
	},
	{
		name:  "implicit directories take after hidden ones",
		stack: [][]file{{dir("a", 0o700), dir("a/b", 0o711)}, {reg("a/.wh..wh..opq", "")}, {reg("a/b/c", "1")}},
		want:  "a dir 700\na/b dir 711\na/b/c reg 644 size=1",
	},
	{
		name:  "implicit directories stop at what is no directory",
		stack: [][]file{{dir("a", 0o700)}, {reg("a", "")}, {reg("a/c", "1")}},
		want:  "a dir 755\na/c reg 644 size=1",
	},
	{
		name:  "a lower layer's file in the way of an implicit directory",
		stack: [][]file{{dir("a", 0o700)}, {reg("a", "")}, {reg("a/b/c", "1")}},
		err:   ErrParent,
	},
	{
		name:  "implicit directories may take after layers below the run",
		below: true,
		stack: [][]file{{reg("a/b", "")}},
		err:   ErrBelow,
	},
	{
		name:  "the group of a setgid directory is inherited, unless set",
		stack: [][]file{{dir("a", 0o2755).owner(0, 5), reg("a/b/c", ""), reg("a/d", "").owner(noID, noID), reg("a/e", "")}},
		want:  "a dir 2755 0:5\na/b dir 755 0:5\na/b/c reg 644 size=0\na/d reg 644 size=0 0:5\na/e reg 644 size=0",
	},
	{
		name:  "the last entry of a name wins",
		stack: [][]file{{reg("a", "1").owner(1, 1), reg("a", "22"), dir("b", 0o700), reg("b", ""), symlink("c", "x"), dir("c", 0o755)}},
		want:  "a reg 644 size=2\nb reg 644 size=0\nc dir 755",
	},
	{
		name: "a directory over a directory sets attributes and keeps the rest",
		stack: [][]file{{
			dir("a", 0o700).xattr("user.x", []byte("1")).xattr("user.y", []byte("2")), reg("a/b", ""),
			dir("a", 0o755).xattr("user.x", []byte("3")),
		}},
		want: "a dir 755 user.x=\"3\" user.y=\"2\"\na/b reg 644 size=0",
	},
	{
		name:  "a directory in an upper layer hides the lower one's attributes",
		stack: [][]file{{dir("a", 0o700).xattr("user.x", []byte("1")), reg("a/b", "")}, {dir("a", 0o755)}},
		want:  "a dir 755\na/b reg 644 size=0",
	},
	{
		name:  "a directory removed and made again by its layer",
		stack: [][]file{{reg("a/b/c", "1"), reg("a/.wh.b", ""), reg("a/b/d", "2"), reg("a/b", ""), reg("a/b", "3"), dir("a/b", 0o700), reg("a/b/e", "")}},
		want:  "a dir 755\na/b dir 700\na/b/e reg 644 size=0",
	},
	{
		name:  "types replaced across layers",
		stack: [][]file{{dir("a", 0o755), reg("a/x", ""), reg("b", ""), symlink("c", "a")}, {reg("a", "1"), dir("b", 0o755), dir("c", 0o700)}},
		want:  "a reg 644 size=1\nb dir 755\nc dir 700",
	},
	{
		name:  "a directory that comes back does not show the old one's files",
		stack: [][]file{{dir("a", 0o755), reg("a/x", "")}, {reg("a", "1")}, {dir("a", 0o755), reg("a/y", "")}},
		want:  "a dir 755\na/y reg 644 size=0",
	},
	{
		name:  "symbolic links of the same layer are followed",
		stack: [][]file{{dir("real", 0o755), symlink("link", "real"), reg("link/x", "1"), symlink("abs", "/real/sub"), reg("abs/y", "")}},
		want:  "abs sym 777 -> /real/sub\nlink sym 777 -> real\nreal dir 755\nreal/sub dir 755\nreal/sub/y reg 644 size=0\nreal/x reg 644 size=1",
	},
	{
		name:  "symbolic links of lower layers are not",
		stack: [][]file{{dir("real", 0o755), symlink("link", "real")}, {reg("link/x", "1")}},
		want:  "link dir 755\nlink/x reg 644 size=1\nreal dir 755",
	},
	{
		name:  "a link's text that stands alone is joined after the next link",
		stack: [][]file{{dir("b/c", 0o755), symlink("c", "/b/c"), symlink("x", "c/.."), reg("x/d", ""), symlink("e", "c/../y"), reg("e/f", "")}},
		want:  "b dir 755\nb/c dir 755\nb/d reg 644 size=0\nb/y dir 755\nb/y/f reg 644 size=0\nc sym 777 -> /b/c\ne sym 777 -> c/../y\nx sym 777 -> c/..",
	},
	{name: "circle of symbolic links", stack: [][]file{{symlink("a", "b"), symlink("b", "a"), reg("a/x", "")}}, err: ErrParent},
	{name: "links that lead to the machine's own files", stack: [][]file{{symlink("a", "b"), symlink("b", "/etc"), reg("a/x/y", "")}}, err: errHost},
	{name: "a file as parent", stack: [][]file{{reg("a", ""), reg("a/x", "")}}, err: ErrParent},
	{
		name:  "whiteouts",
		stack: [][]file{{reg("a/x", ""), reg("a/y", ""), reg("b", "")}, {reg("a/.wh.x", ""), reg(".wh.b", ""), reg(".wh.nothing", "")}},
		want:  "a dir 755\na/y reg 644 size=0",
	},
	{
		name:  "a whiteout before its own layer's file hides the lower one",
		stack: [][]file{{reg("a", "1")}, {reg(".wh.a", ""), reg("a", "22")}},
		want:  "a reg 644 size=2",
	},
	{
		name:  "a whiteout before its own layer's directory does not",
		stack: [][]file{{reg("a/x", "")}, {reg(".wh.a", ""), dir("a", 0o700)}},
		want:  "a dir 700\na/x reg 644 size=0",
	},
	{name: "a whiteout after its own layer's file", stack: [][]file{{}, {reg("a", ""), reg(".wh.a", "")}}, err: ErrWhiteout},
	{name: "a whiteout of nothing", stack: [][]file{{}, {reg(".wh.", "")}}, err: ErrWhiteout},
	{name: "a whiteout of the directory itself", stack: [][]file{{}, {reg("a/.wh..", "")}}, err: ErrWhiteout},
	{name: "a whiteout of the parent", stack: [][]file{{}, {reg("a/.wh...", "")}}, err: ErrWhiteout},
	{
		name:  "device 0:0 is a whiteout, and so is a hard link to one",
		stack: [][]file{{reg("a", ""), reg("b", ""), reg("c", "")}, {char("a", 0, 0), reg(".wh.b", ""), hardlink("c", "b")}},
		want:  "",
	},
	{
		name:  "other names with the prefix twice mean nothing",
		stack: [][]file{{reg("a", "")}, {reg(".wh..wh.plnk", ""), reg(".wh..wh.aufs/x", "")}},
		want:  ".wh..wh.aufs dir 755\n.wh..wh.aufs/x reg 644 size=0\na reg 644 size=0",
	},
	{
		name:  "opaque directories hide lower layers, wherever the mark is",
		stack: [][]file{{reg("a/x", ""), reg("b/x", "")}, {dir("a", 0o755), reg("a/.wh..wh..opq", ""), reg("a/y", ""), reg("b/y", ""), reg("b/.wh..wh..opq", "")}},
		want:  "a dir 755\na/y reg 644 size=0\nb dir 755\nb/y reg 644 size=0",
	},
	{
		name:  "a mark of the root is not heeded, as by overlayfs",
		stack: [][]file{{reg("a", "")}, {reg(".wh..wh..opq", ""), reg("b", "")}},
		want:  "a reg 644 size=0\nb reg 644 size=0",
	},
	{
		name:  "whiteouts in the lowest layer remove what came before",
		stack: [][]file{{reg("a", ""), reg("b", ""), reg(".wh.a", ""), reg(".wh.b", ""), reg("b", "1")}},
		want:  "b reg 644 size=1",
	},
	{
		name:  "marks in the lowest layer remove what has no entry",
		stack: [][]file{{dir("a", 0o755), reg("a/x", ""), reg("a/i/y", ""), reg("a/.wh..wh..opq", ""), reg("a/z/y", ""), reg("a/.wh..wh..opq", "")}},
		want:  "a dir 755\na/x reg 644 size=0\na/z dir 755\na/z/y reg 644 size=0",
	},
	{name: "a directory that its own layer removes", stack: [][]file{{dir("a", 0o755), reg(".wh.a", "")}}, err: ErrParent},
	{
		name: "hard links share an inode, the last entry gives its attributes",
		stack: [][]file{{
			reg("a", "1").at(1, 1).xattr("user.x", []byte("1")).xattr(xattrCapability, capability()),
			hardlink("b/c", "a").owner(1, 2).chmod(0o600).at(2, 3).xattr("user.y", []byte("2")),
		}},
		want: "a reg 600 size=1 1:2 @2.3 links=2 user.x=\"1\" user.y=\"2\"\nb dir 755\nb/c reg 600 size=1 1:2 @2.3 links=2 user.x=\"1\" user.y=\"2\"",
	},
	{
		name:  "hard links to symbolic links and devices",
		stack: [][]file{{symlink("s", "x"), hardlink("t", "s").at(4, 0), char("c", 1, 3), hardlink("d", "c").chmod(0o666)}},
		want:  "c chr 666 dev=103 links=2\nd chr 666 dev=103 links=2\ns sym 777 -> x @4.0 links=2\nt sym 777 -> x @4.0 links=2",
	},
	{
		name:  "links that are hidden do not count",
		stack: [][]file{{reg("a", "1"), hardlink("b", "a"), hardlink("c", "a"), hardlink("d", "a")}, {reg(".wh.a", ""), reg("b", "22")}},
		want:  "b reg 644 size=2\nc reg 644 size=1 links=2\nd reg 644 size=1 links=2",
	},
	{
		name:  "a name replaced after it was linked to",
		stack: [][]file{{reg("a", "1"), hardlink("b", "a"), reg("a", "22")}},
		want:  "a reg 644 size=2\nb reg 644 size=1",
	},
	{
		name:  "hard link through a symbolic link",
		stack: [][]file{{reg("d/a", "1"), symlink("l", "d"), hardlink("b", "l/a")}},
		want:  "b reg 644 size=1 links=2\nd dir 755\nd/a reg 644 size=1 links=2\nl sym 777 -> d",
	},
	{name: "hard link to nothing", stack: [][]file{{hardlink("b", "a")}}, err: ErrLink},
	{name: "hard link to what comes later", stack: [][]file{{hardlink("b", "a"), reg("a", "")}}, err: ErrLink},
	{name: "hard link to a lower layer", stack: [][]file{{reg("a", "")}, {hardlink("b", "a")}}, err: ErrLink},
	{name: "hard link to a directory", stack: [][]file{{dir("a", 0o755), hardlink("b", "a")}}, err: ErrLink},
	{name: "hard link to itself", stack: [][]file{{reg("a", ""), hardlink("a", "a")}}, err: ErrLink},
	{name: "hard link to a parent", stack: [][]file{{hardlink("a/b", "a")}}, err: ErrLink},
	{name: "hard link without a target", stack: [][]file{{hardlink("b", "")}}, err: ErrLink},
	{name: "hard link out of the layer", stack: [][]file{{hardlink("b", "../a")}}, err: ErrLink},
	{
		name:  "attributes that containerd drops",
		stack: [][]file{{reg("a", "").xattr("trusted.overlay.redirect", []byte("/x")).xattr("trusted.x", nil).xattr("foo.bar", nil).xattr("user", nil), symlink("b", "c").xattr("user.x", nil).xattr("security.x", nil)}},
		want:  "a reg 644 size=0\nb sym 777 -> c security.x=\"\"",
	},
	{
		name:  "an ACL follows the mode",
		stack: [][]file{{reg("a", "").chmod(0o751).xattr(xattrACL, makeACL(aclLine{aclUserObj, 0, noID}, aclLine{aclUser, 2, 9}, aclLine{aclGroupObj, 1, noID}, aclLine{aclMask, 0, noID}, aclLine{aclOther, 0, noID}))}},
		want:  fmt.Sprintf("a reg 751 size=0 %s=%q", xattrACL, makeACL(aclLine{aclUserObj, 7, noID}, aclLine{aclUser, 2, 9}, aclLine{aclGroupObj, 1, noID}, aclLine{aclMask, 5, noID}, aclLine{aclOther, 1, noID})),
	},
	{name: "time before 1970", stack: [][]file{{reg("a", "").at(-1, 0), reg("b", "").at(0, 1), reg("c", "").at(1<<40, 0), reg("d", "").at(9223372036, 854775807)}}, want: "a reg 644 size=0\nb reg 644 size=0 @0.1\nc reg 644 size=0\nd reg 644 size=0 @9223372036.854775807"},
	{
		name:  "eStargz' own files are hidden",
		stack: [][]file{{reg(".prefetch.landmark", "x"), reg(".no.prefetch.landmark", "x"), reg("stargz.index.json", "x"), reg("a/.prefetch.landmark", "x")}},
		want:  "a dir 755\na/.prefetch.landmark reg 644 size=1",
	},
	{
		name: "root directory entry is ignored", stack: [][]file{{dir("", 0o700).owner(1, 1), reg("a", "")}},
		want: "a reg 644 size=0",
	},
	{
		name: "with a layer below, whiteouts stay where they can hide something", below: true,
		stack: [][]file{
			{dir("a", 0o755), reg("a/.wh.x", ""), dir("o", 0o755), reg("o/.wh..wh..opq", ""), dir("o/d", 0o755), reg("o/d/.wh.x", "")},
			{reg(".wh.y", ""), reg(".wh.z", "")},
			{reg("z", "")},
		},
		want: "a dir 755\na/x whiteout\no dir 755 opaque\no/d dir 755\ny whiteout\nz reg 644 size=0",
	},
	{
		name: "with a layer below, what is hidden in the run stays hidden there", below: true,
		stack: [][]file{{reg("f", ""), reg(".wh.w", ""), dir("m", 0o755), dir("m/o", 0o755)}, {dir("f", 0o755), dir("w", 0o755), dir("m", 0o700), dir("m/o", 0o700), reg("m/o/.wh..wh..opq", "")}, {dir("m", 0o711), dir("m/o", 0o711)}},
		want:  "f dir 755 opaque\nm dir 711\nm/o dir 711 opaque\nw dir 755 opaque",
	},
}

func TestMerge(t *testing.T) {
	for _, c := range mergeCases {
		t.Run(c.name, func(t *testing.T) {
			root, err := merge(t, c.stack, onSomething(c.below))
			if c.err != nil {
				var refused *RefusedError
				if !errors.Is(err, c.err) || !errors.As(err, &refused) {
					t.Fatalf("got error %v, want one of %v", err, c.err)
				}
				if last := len(c.stack) - 1; refused.Layer != last {
					t.Errorf("refuses layer %d, want %d", refused.Layer, last)
				}
				files := c.stack[refused.Layer]
				if !slices.ContainsFunc(files, func(f file) bool { return f.Name == refused.Path }) {
					t.Errorf("names %q, no entry of the layer", refused.Path)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := list(root); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			if root.mode != 0o755 || root.uid != 0 || root.gid != 0 || root.sec != 0 || len(root.xattrs) != 0 {
				t.Errorf("root: mode %o owner %d:%d time %d attributes %v", root.mode, root.uid, root.gid, root.sec, root.xattrs)
			}
		})
	}
}
