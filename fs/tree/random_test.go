package tree

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// TestAsContainerd compares, for random stacks of layers, what containerd's own
// unpacking shows through overlayfs with what images of runs of them show: the
// whole stack, a run between normal layers, and several.
func TestAsContainerd(t *testing.T) {
	const stacks = 300
	refused, over, hidden := 0, 0, 0
	for seed := range uint64(stacks) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			g := &generator{Rand: rand.New(rand.NewPCG(seed, 2))}
			stack := g.stack()
			dir := tempDir(t)
			start := time.Now().Truncate(time.Second)

			var uppers []string // highest first
			for i, files := range stack {
				upper := filepath.Join(dir, fmt.Sprint("u", i))
				refErr := unpack(t, upper, uppers, files)
				ourErr := refusal(context.Background(), layersOf(stack[:i+1]))
				if (refErr == nil) != (ourErr == nil) && !errors.Is(ourErr, errHost) {
					t.Fatalf("layer %d: containerd says %v, we say %v\n%s", i, refErr, ourErr, dump(stack[:i+1]))
				}
				if refErr != nil || ourErr != nil {
					refused++
					stack = stack[:i]
					break
				}
				uppers = append([]string{upper}, uppers...)
			}
			if len(stack) == 0 {
				return
			}
			objects, empty := filepath.Join(dir, "o"), filepath.Join(dir, "e")
			writeObjects(t, objects, stack)
			writeObjects(t, empty, nil)

			ref := filepath.Join(dir, "ref")
			mountOverlay(t, ref, "lowerdir="+strings.Join(append(slices.Clone(uppers), empty), ":"))
			want := walk(t, ref)

			// check builds a tree of each run of layers that are not normal.
			check := func(name string, normal []bool) {
				defer func() {
					if t.Failed() {
						t.Logf("%s: normal %t\n%s", name, normal, dump(stack))
					}
				}()
				var lower []string // highest first
				options := ""
				for from := 0; from < len(stack); {
					to := from
					for to < len(stack) && !normal[to] {
						to++
					}
					if to > from {
						var opts Options
						if from > 0 {
							// Linux 6.16 needs this no more, but for a tree with layers
							// below it: it would look for the object there too.
							options = ",metacopy=on"
							below := filepath.Join(dir, fmt.Sprint(name, from, "below"))
							mountOverlay(t, below, "lowerdir="+strings.Join(append(slices.Clone(lower), empty), ":")+"::"+objects+options)
							opts.Below = func(path string) (bool, error) {
								has, err := hasPath(below, path)
								if !has {
									hidden++
								}
								return has, err
							}
						}
						image, mnt := filepath.Join(dir, fmt.Sprint(name, from, ".erofs")), filepath.Join(dir, fmt.Sprint(name, from))
						_, err := buildImage(t, image, layersOf(stack[from:to]), opts)
						switch {
						case errors.Is(err, ErrBelow) && from > 0:
							to = from // unpacked, then
						case err != nil:
							t.Fatal(err)
						default:
							if from > 0 {
								over++
							}
							mountImage(t, image, mnt)
							lower = slices.Insert(lower, 0, mnt)
							from = to
						}
					}
					if to == from && from < len(stack) {
						lower = slices.Insert(lower, 0, uppers[len(uppers)-1-from])
						from++
					}
				}
				root := filepath.Join(dir, name+"root")
				mountOverlay(t, root, "lowerdir="+strings.Join(lower, ":")+"::"+objects+options)
				compare(t, want, walk(t, root), start, !slices.Contains(normal, true))
			}
			from := g.IntN(len(stack))
			to := from + 1 + g.IntN(len(stack)-from)
			one, several := make([]bool, len(stack)), make([]bool, len(stack))
			for i := range stack {
				one[i] = i < from || i >= to
				several[i] = g.IntN(2) == 0
			}
			check("all", make([]bool, len(stack)))
			check("run", one)
			check("several", several)
		})
	}
	t.Logf("%d trees over normal layers, %d whiteouts of what is not there", over, hidden)
	if over < stacks/5 || hidden < stacks/10 {
		t.Errorf("%d trees over normal layers, with %d whiteouts of what is not there: too few", over, hidden)
	}
	t.Logf("%d of %d stacks have a layer that is refused", refused, stacks)
	if refused < stacks/50 || refused > stacks/2 {
		t.Errorf("%d of %d stacks refused: the generator makes too few or too many", refused, stacks)
	}
}

// hasPath reports whether something is at a path below root. It follows no
// symbolic link.
func hasPath(root, p string) (bool, error) {
	for more := true; more; {
		var c string
		c, p, more = strings.Cut(p, "/")
		root += "/" + c
		st, err := os.Lstat(root)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if more && !st.IsDir() {
			return false, nil
		}
	}
	return true, nil
}

func dump(stack [][]file) string {
	var b strings.Builder
	for i, files := range stack {
		fmt.Fprintf(&b, "layer %d\n", i)
		for _, f := range files {
			fmt.Fprintf(&b, "\ttype %d %q link %q mode %o owner %d:%d dev %d:%d time %v xattrs %q content %q\n",
				f.Type, f.Name, f.LinkName, f.Mode, int32(f.UID), int32(f.GID), f.Major, f.Minor, f.ModTime, f.Xattrs, f.content)
		}
	}
	return b.String()
}

// generator makes layers with few names, so that they meet often.
type generator struct {
	*rand.Rand
}

func pick[T any](g *generator, of ...T) T { return of[g.IntN(len(of))] }

// stack makes layers of which most can be applied: what cannot is mostly left
// out as it comes up. In half of the stacks layers have, as build tools write
// them, the directories above all that is in them: else few could lie on normal
// layers.
func (g *generator) stack() [][]file {
	strict, parents := g.IntN(8) > 0, g.IntN(2) == 0
	stack := make([][]file, 1+g.IntN(5))
	for i := range stack {
		for range 1 + g.IntN(24) {
			f := g.file(stack[:i+1])
			if parents {
				for _, d := range g.missing(stack[i], f.Name) {
					g.add(stack[:i+1], d, true)
				}
			}
			g.add(stack[:i+1], f, strict || g.IntN(10) > 0)
		}
	}
	return stack
}

// add adds a file to the topmost layer, but not what cannot be applied when
// that is to be checked.
func (g *generator) add(stack [][]file, f file, check bool) {
	top := &stack[len(stack)-1]
	*top = append(*top, f)
	if check && refusal(context.Background(), layersOf(stack)) != nil {
		*top = (*top)[:len(*top)-1]
	}
}

// missing returns the directories above a path that have no entry.
func (g *generator) missing(files []file, p string) (dirs []file) {
	for p, _ = split(p); p != ""; p, _ = split(p) {
		if !slices.ContainsFunc(files, func(f file) bool { return f.Name == p }) {
			dirs = append(dirs, dir(p, pick[uint32](g, 0o755, 0o700, 0o1777)))
		}
	}
	slices.Reverse(dirs)
	return dirs
}

func (g *generator) name() string {
	return pick(g, "a", "b", "c", "d", "a", "b", "c", "x", "+", "-y", "\xff\n", "..z", "é"+strings.Repeat("n", 200))
}

// path returns a path, mostly one that is in the stack or below it.
func (g *generator) path(stack [][]file) string {
	files := stack[len(stack)-1]
	if len(files) == 0 || g.IntN(3) == 0 {
		files = stack[g.IntN(len(stack))]
	}
	if len(files) > 0 && g.IntN(4) > 0 {
		p := files[g.IntN(len(files))].Name
		if strings.Contains(p, whiteoutPrefix) {
			p = strings.Replace(p, whiteoutPrefix, "", 1)
			if strings.Contains(p, whiteoutPrefix) {
				return g.name()
			}
		}
		if g.IntN(2) == 0 && strings.Count(p, "/") < 5 {
			p += "/" + g.name()
		}
		return p
	}
	p := g.name()
	for g.IntN(2) == 0 {
		p += "/" + g.name()
	}
	return p
}

func (g *generator) file(stack [][]file) file {
	f := file{Entry: layer.Entry{
		Name:    g.path(stack),
		Mode:    pick[uint32](g, 0o755, 0o644, 0o700, 0o4755, 0o2755, 0o1777, 0o2070, 0, 0o7777),
		UID:     pick[uint32](g, 0, 0, 1000, 65536, 1<<32-2, noID),
		GID:     pick[uint32](g, 0, 0, 33, 70000, 1<<31, noID),
		ModTime: g.time(),
	}}
	dir, base := split(f.Name)
	switch n := g.IntN(100); {
	case n < 30:
		f.Type = layer.Dir
	case n < 55:
		f.Type = layer.Reg
		f.content = strings.Repeat(pick(g, "", "1", "2", "3"), pick(g, 1, 10, 5000))
	case n < 67:
		f.Type = layer.Symlink
		f.LinkName = pick(g, "a", "b", "../a", "../../b/c", "/a", "/b/c", "./c", "c/..", ".", "..", "/", "x/y", g.path(stack), "nowhere")
	case n < 77:
		f.Type = layer.Hardlink
		f.LinkName = g.path(stack[len(stack)-1:])
	case n < 82:
		f.Type = pick(g, layer.Char, layer.Block, layer.Fifo)
		f.Major, f.Minor = pick[uint32](g, 0, 1, 259, 4095), pick[uint32](g, 0, 3, 300, 1<<20-1)
	case n < 93:
		f.Type = pick(g, layer.Reg, layer.Reg, layer.Char, layer.Dir)
		f.Name = join(dir, whiteoutPrefix+base)
	default:
		f.Type = layer.Reg
		f.Name = join(pick(g, dir, f.Name), opaqueMarker)
	}
	if g.IntN(100) == 0 {
		f.Name = join(dir, pick(g, ".wh.", ".wh..", ".wh...", ".wh..wh.x", ".wh..wh..opqx", ".wh.a/b"))
	}
	for g.IntN(3) == 0 {
		f.addXattr(g.xattr(f.Type))
	}
	return f
}

func (f *file) addXattr(x layer.Xattr) {
	for _, y := range f.Xattrs {
		if x.Name == y.Name {
			return
		}
	}
	f.Xattrs = append(f.Xattrs, x)
	slices.SortFunc(f.Xattrs, func(a, b layer.Xattr) int { return strings.Compare(a.Name, b.Name) })
}

func (g *generator) time() time.Time {
	return time.Unix(pick[int64](g, 0, 1, 1700000000, 1<<33, 9223372036, -1, -1<<40, 1<<35), pick[int64](g, 0, 1, 123456789, 999999999))
}

func (g *generator) xattr(kind layer.Type) layer.Xattr {
	value := []byte(strings.Repeat("v", pick(g, 1, 3, 300)))
	switch g.IntN(12) {
	case 0, 1:
		return layer.Xattr{Name: "user." + pick(g, "a", "b", "c"), Value: value}
	case 2:
		return layer.Xattr{Name: "security.foo", Value: value}
	case 3:
		return layer.Xattr{Name: pick(g, "trusted.x", "trusted.overlay.opaque", "trusted.overlay.redirect", "system.foo", "foo", "foo.bar", "user"), Value: value}
	case 4, 5, 6:
		return layer.Xattr{Name: xattrCapability, Value: capability()}
	case 7:
		if g.IntN(10) == 0 {
			return layer.Xattr{Name: pick(g, "user.", "security.", xattrCapability, xattrACL), Value: value}
		}
		fallthrough
	case 8, 9:
		return layer.Xattr{Name: xattrACL, Value: g.acl()}
	default:
		if kind != layer.Dir && g.IntN(10) > 0 {
			return layer.Xattr{Name: "user.d", Value: value}
		}
		return layer.Xattr{Name: xattrDefaultACL, Value: g.acl()}
	}
}

// capability returns cap_net_bind_service+ep.
func capability() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	b = binary.LittleEndian.AppendUint32(b, 1<<10)
	return append(b, make([]byte, 12)...)
}

type aclLine struct {
	tag, perm uint16
	id        uint32
}

func makeACL(lines ...aclLine) []byte {
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, l := range lines {
		b = binary.LittleEndian.AppendUint16(b, l.tag)
		b = binary.LittleEndian.AppendUint16(b, l.perm)
		b = binary.LittleEndian.AppendUint32(b, l.id)
	}
	return b
}

func (g *generator) acl() []byte {
	perm := func() uint16 { return uint16(g.IntN(8)) }
	lines := []aclLine{{aclUserObj, perm(), noID}}
	named := g.IntN(3)
	for i := range named {
		lines = append(lines, aclLine{aclUser, perm(), uint32(1000 + i)})
	}
	lines = append(lines, aclLine{aclGroupObj, perm(), noID})
	if named == 2 {
		lines = append(lines, aclLine{aclGroup, perm(), 7})
	}
	if named > 0 || g.IntN(2) == 0 {
		lines = append(lines, aclLine{aclMask, perm(), noID})
	}
	lines = append(lines, aclLine{aclOther, perm(), noID})
	switch g.IntN(40) {
	case 0:
		lines = lines[1:]
	case 1:
		lines[0].perm = 8
	case 2:
		lines = nil
	}
	return makeACL(lines...)
}
