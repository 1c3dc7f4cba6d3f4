package image

import (
	"archive/tar"
	"context"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// craftedLayers is the number of layers of [Crafted].
const craftedLayers = 30

// Crafted is an image of 30 small layers that do to each other whatever a
// layer can do to those below it: whiteouts of files and folders, also of
// nothing; opaque folders; each kind of inode replaced by each other; hard
// links one of whose names goes or changes later; names that come back. What
// is done where is drawn from a generator with a fixed seed.
//
// As build tools write them, each layer has the folders above all it changes.
func Crafted() Recipe {
	return Recipe{
		Name:   "crafted",
		Config: ocispec.ImageConfig{},
		Layers: func(context.Context, string, string) ([]Layer, error) {
			c := &crafter{
				random: rand.New(rand.NewPCG(2, 30)),
				tree:   map[string]*tar.Header{},
			}
			var layers []Layer
			for i := range craftedLayers {
				entries := c.layer(i)
				layers = append(layers, func(_ context.Context, w *tar.Writer) error {
					for _, e := range entries {
						if err := add(w, e.Header, e.data); err != nil {
							return err
						}
					}
					return nil
				})
			}
			return layers, nil
		},
	}
}

// entry is one entry of a layer.
type entry struct {
	tar.Header
	data string
}

// add writes one entry; the header's size follows from data.
func add(w *tar.Writer, h tar.Header, data string) error {
	h.Size, h.Format = int64(len(data)), tar.FormatPAX
	if h.Typeflag == tar.TypeDir {
		h.Name += "/"
	}
	if err := w.WriteHeader(&h); err != nil {
		return fmt.Errorf("%q: %w", h.Name, err)
	}
	_, err := w.Write([]byte(data))
	return err
}

// crafter draws layers, one above the other.
type crafter struct {
	random *rand.Rand
	// tree is what the layers so far amount to, by path.
	tree map[string]*tar.Header

	// Of the layer that is being drawn:
	number  int
	entries []entry
	changed []string        // paths that something was done to: nothing else may be done to them
	dirs    map[string]bool // folders that have their entry
}

// layer draws the next layer.
func (c *crafter) layer(number int) []entry {
	c.number, c.entries, c.changed, c.dirs = number, nil, nil, map[string]bool{}
	if number == 0 {
		for i := range 6 {
			c.put(tar.TypeDir, fmt.Sprintf("d%d", i))
		}
	}
	operations := []func(){
		c.create, c.create, c.create, c.create,
		c.replace, c.replace, c.replace,
		c.remove, c.remove,
		c.opaque, c.hardLinks, c.metadata, c.strayWhiteout,
	}
	for range 60 {
		operations[c.random.IntN(len(operations))]()
	}
	return c.entries
}

// create adds something under a new name, or one that a lower layer removed.
func (c *crafter) create() {
	if name := c.freshName(); c.free(name) {
		c.putSome(name)
	}
}

// replace puts another thing in the place of one, of any kind each.
func (c *crafter) replace() {
	if name := c.pick(func(*tar.Header) bool { return true }); name != "" {
		c.putSome(name)
	}
}

// remove writes the whiteout of a file or a whole folder.
func (c *crafter) remove() {
	if name := c.pick(func(*tar.Header) bool { return true }); name != "" {
		c.parents(name)
		c.whiteout(name)
		c.forget(name)
	}
}

// opaque makes a folder hide all that lower layers have in it.
func (c *crafter) opaque() {
	name := c.pick(func(h *tar.Header) bool { return h.Typeflag == tar.TypeDir })
	if name == "" {
		return
	}
	c.forget(name)
	c.put(tar.TypeDir, name)
	c.entries = append(c.entries, entry{Header: tar.Header{
		Name: path.Join(name, ".wh..wh..opq"), Typeflag: tar.TypeReg, Mode: 0o600, ModTime: c.time(),
	}})
	c.children(name)
}

// hardLinks adds one file under three names, in two folders.
func (c *crafter) hardLinks() {
	first, second, third := c.freshName(), c.freshName(), c.freshName()
	if first == second || second == third || first == third || !c.free(first) {
		return
	}
	c.forget(first)
	c.put(tar.TypeReg, first)
	for _, name := range []string{second, third} {
		if c.free(name) {
			c.parents(name)
			c.changed = append(c.changed, name)
			link := tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: first, ModTime: c.time()}
			c.entries = append(c.entries, entry{Header: link})
			// The link's inode is a regular file's.
			file := *c.tree[first]
			c.forget(name)
			c.tree[name] = &file
		}
	}
}

// metadata changes nothing of a folder but its mode, owner, times and xattrs.
func (c *crafter) metadata() {
	if name := c.pick(func(h *tar.Header) bool { return h.Typeflag == tar.TypeDir }); name != "" {
		c.put(tar.TypeDir, name)
	}
}

// strayWhiteout removes what no layer has.
func (c *crafter) strayWhiteout() {
	name := path.Join(c.freshDir(), fmt.Sprintf("stray%d", c.random.IntN(100)))
	if c.free(name) {
		c.parents(name)
		c.whiteout(name)
	}
}

func (c *crafter) whiteout(name string) {
	c.changed = append(c.changed, name)
	c.entries = append(c.entries, entry{Header: tar.Header{
		Name: path.Join(path.Dir(name), ".wh."+path.Base(name)), Typeflag: tar.TypeReg, Mode: 0o600, ModTime: c.time(),
	}})
}

// putSome puts something of any kind at name; a folder that takes a folder's
// place is left to metadata and opaque.
func (c *crafter) putSome(name string) {
	kinds := []byte{tar.TypeReg, tar.TypeReg, tar.TypeReg, tar.TypeSymlink, tar.TypeFifo, tar.TypeChar, tar.TypeDir, tar.TypeDir}
	kind := kinds[c.random.IntN(len(kinds))]
	if old := c.tree[name]; old != nil && old.Typeflag == tar.TypeDir && kind == tar.TypeDir {
		kind = tar.TypeReg
	}
	c.forget(name)
	c.put(kind, name)
	if kind == tar.TypeDir {
		c.children(name)
	}
}

// children puts a few files into a new folder.
func (c *crafter) children(dir string) {
	for i := range c.random.IntN(4) {
		c.put(tar.TypeReg, path.Join(dir, fmt.Sprintf("f%d", i)))
	}
}

// put writes an entry with drawn attributes, the folders above it first.
func (c *crafter) put(kind byte, name string) {
	c.parents(name)
	h := &tar.Header{
		Name: name, Typeflag: kind,
		Mode:    []int64{0o644, 0o600, 0o755, 0o4755, 0o2750, 0o1777}[c.random.IntN(6)],
		Uid:     c.random.IntN(3) * 1000,
		Gid:     c.random.IntN(3) * 100,
		ModTime: c.time().Add(time.Duration(c.random.IntN(1_000_000_000))),
	}
	var data string
	switch kind {
	case tar.TypeReg:
		data = strings.Repeat(fmt.Sprintf("%s of layer %d\n", name, c.number), c.random.IntN(200))
	case tar.TypeSymlink:
		h.Mode, h.Linkname = 0o777, []string{"../d0/f0", "/d1", "nowhere", "."}[c.random.IntN(4)]
	case tar.TypeChar:
		h.Devmajor, h.Devminor = 1, 3
	case tar.TypeDir:
		c.dirs[name] = true
	}
	if kind != tar.TypeSymlink && c.random.IntN(3) == 0 {
		h.PAXRecords = map[string]string{"SCHILY.xattr.trusted.layer": fmt.Sprint(c.number)}
	}
	c.tree[name] = h
	c.changed = append(c.changed, name)
	c.entries = append(c.entries, entry{Header: *h, data: data})
}

// parents writes the entries of the folders above name that the layer does
// not have yet, changed in nothing but their time.
func (c *crafter) parents(name string) {
	dir := path.Dir(name)
	if dir == "." || c.dirs[dir] {
		return
	}
	c.parents(dir)
	c.dirs[dir] = true
	h := c.tree[dir]
	h.ModTime = c.time()
	c.entries = append(c.entries, entry{Header: *h})
}

// forget takes name and all below it out of the tree.
func (c *crafter) forget(name string) {
	for p := range c.tree {
		if p == name || strings.HasPrefix(p, name+"/") {
			delete(c.tree, p)
		}
	}
}

// free says whether name is in a folder, and this layer has done nothing to
// it, to what is below it, or to what is above it but to give it entries.
func (c *crafter) free(name string) bool {
	if dir := c.tree[path.Dir(name)]; dir == nil || dir.Typeflag != tar.TypeDir {
		return false
	}
	return !c.dirs[name] && !slices.ContainsFunc(c.changed, func(done string) bool {
		return done == name || strings.HasPrefix(done, name+"/") || strings.HasPrefix(name, done+"/")
	})
}

// pick draws a free path below the top folders, of those that fit, or "".
func (c *crafter) pick(fits func(*tar.Header) bool) string {
	var names []string
	for name, h := range c.tree {
		if strings.Contains(name, "/") && fits(h) && c.free(name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return names[c.random.IntN(len(names))]
}

// freshDir draws a folder, not deeper than five names.
func (c *crafter) freshDir() string {
	var names []string
	for name, h := range c.tree {
		if h.Typeflag == tar.TypeDir && strings.Count(name, "/") < 5 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names[c.random.IntN(len(names))]
}

// freshName draws a path that may well have been another thing's before.
func (c *crafter) freshName() string {
	return path.Join(c.freshDir(), fmt.Sprintf("%c%d", 'a'+rune(c.random.IntN(4)), c.random.IntN(8)))
}

// time is the layer's: a day for each.
func (c *crafter) time() time.Time { return epoch.AddDate(0, 0, c.number) }
