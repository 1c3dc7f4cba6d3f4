package estargz

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// xattrPrefix begins the PAX records of extended attributes.
const xattrPrefix = "SCHILY.xattr."

// maxSparseBytes bounds a sparse file, which is written out with its holes.
const maxSparseBytes = 8 << 30

// normalizer reads a tar so that an eStargz of what it notes means to a reader
// what the tar means to a container runtime: a sparse file's holes are
// written out, global headers are left out, and of several entries with one
// name the last counts, unless that changes what links to an earlier one, or
// something else where names are looked up and not unpacked in their order.
//
// What cannot be mended is refused with ErrNotConvertible.
type normalizer struct {
	contents io.Writer // takes the contents of files, one after the other
	written  int64     // bytes of them; after them comes the landmark's
	entries  []*entry  // in the order of the tar
	seen     map[string]*node
}

// entry is one entry of the layer.
type entry struct {
	header   *tar.Header // in the form that header gives it
	contents int64       // where they are in what was written: header.Size bytes
	replaced bool        // by a later entry of the same name
}

// node is what the entries so far have put under a name.
type node struct {
	entry  *entry // the last one; nil for a directory without
	dir    bool
	xattrs bool // has some
	linked bool // a hard link refers to it
}

func newNormalizer(contents io.Writer) *normalizer {
	return &normalizer{contents: contents, seen: map[string]*node{}}
}

// copy reads the tar in r.
func (n *normalizer) copy(r io.Reader) error {
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if err == io.EOF {
			_, err := n.contents.Write([]byte{landmarkContents}) // at n.written
			return err
		}
		if err != nil {
			return fmt.Errorf("read the layer's tar: %w", err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue // runtimes ignore it: nothing follows from it
		}
		if err := n.entry(in, h); err != nil {
			return err
		}
	}
}

func (n *normalizer) entry(in *tar.Reader, h *tar.Header) error {
	name, err := checkName(h.Name)
	if err != nil {
		return refuse("a name %w", err)
	}
	switch name {
	case estargz.TOCTarName, estargz.PrefetchLandmark, estargz.NoPrefetchLandmark:
		return nil // of an earlier conversion
	}
	if err := n.place(name, h); err != nil {
		return refuse("%q %w", name, err)
	}
	out, err := header(name, h)
	if err != nil {
		return refuse("%q %w", name, err)
	}
	if err := tar.NewWriter(io.Discard).WriteHeader(out); err != nil {
		return refuse("%q cannot be written to a tar: %w", name, err)
	}
	e := &entry{header: out, contents: n.written}
	if old := n.seen[name].entry; old != nil {
		old.replaced = true
	}
	n.seen[name].entry = e
	n.entries = append(n.entries, e)
	if out.Size == 0 {
		return nil
	}
	size, err := io.Copy(n.contents, in)
	n.written += size
	if err == nil && size != out.Size {
		err = fmt.Errorf("%d of %d bytes: %w", size, out.Size, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return fmt.Errorf("copy %q from the layer's tar: %w", name, err)
	}
	return nil
}

// place notes what is put under name, and refuses what would mean another
// thing where entries are looked up by name and not unpacked in their order.
func (n *normalizer) place(name string, h *tar.Header) error {
	for dir := parent(name); dir != ""; dir = parent(dir) {
		above := n.seen[dir]
		if above == nil {
			n.seen[dir] = &node{dir: true} // made by whoever unpacks the tar
			continue
		}
		if !above.dir {
			return fmt.Errorf("lies below %q, which is no directory in the layer", dir)
		}
		break
	}
	var xattrs bool
	for k := range h.PAXRecords {
		xattrs = xattrs || strings.HasPrefix(k, xattrPrefix)
	}
	isDir := h.Typeflag == tar.TypeDir
	if old := n.seen[name]; old != nil && name != "" { // runtimes leave the root as it is
		switch {
		case old.linked:
			return errors.New("comes twice, and a hard link refers to the first")
		case old.dir && !isDir:
			return errors.New("comes twice, first as a directory")
		case old.dir && old.xattrs:
			return errors.New("comes twice, first with extended attributes")
		}
	}
	if h.Typeflag == tar.TypeLink {
		target, err := checkName(h.Linkname)
		if err != nil {
			return fmt.Errorf("is a hard link to a name that %w", err)
		}
		to := n.seen[target]
		switch {
		case target == name:
			return errors.New("is a hard link to itself")
		case to == nil || to.dir:
			return fmt.Errorf("is a hard link to %q, which is no file that precedes it in the layer", target)
		}
		to.linked = true
	}
	to := &node{dir: isDir, xattrs: xattrs}
	if old := n.seen[name]; old != nil {
		to.entry = old.entry
	}
	n.seen[name] = to
	return nil
}

// header returns the header of the entry name in a form that no reader or
// writer of tars changes, refusing what package layer would refuse.
func header(name string, h *tar.Header) (*tar.Header, error) {
	out := &tar.Header{
		Typeflag: h.Typeflag, Name: name, Mode: h.Mode & 0o7777,
		Uid: h.Uid, Gid: h.Gid, Uname: h.Uname, Gname: h.Gname,
		ModTime: boundTime(h.ModTime), Format: tar.FormatPAX,
	}
	switch h.Typeflag {
	case tar.TypeReg:
		out.Size = h.Size
		if h.Size > maxSparseBytes && isSparse(h) {
			return nil, fmt.Errorf("is a sparse file of %d bytes, at most %d", h.Size, int64(maxSparseBytes))
		}
	case tar.TypeDir:
		out.Name += "/"
		if name == "" {
			out.Name = "./"
		}
	case tar.TypeLink:
		out.Linkname = cleanName(h.Linkname)
	case tar.TypeSymlink:
		out.Linkname = h.Linkname
		if h.Linkname == "" || len(h.Linkname) > 4095 {
			return nil, fmt.Errorf("is a symlink to a name of %d bytes", len(h.Linkname))
		}
	case tar.TypeChar, tar.TypeBlock:
		out.Devmajor, out.Devminor = h.Devmajor, h.Devminor
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return nil, fmt.Errorf("has the device number %d:%d, which Linux does not have", h.Devmajor, h.Devminor)
		}
	case tar.TypeFifo:
	default:
		return nil, fmt.Errorf("is of the type %q, which container runtimes do not unpack", h.Typeflag)
	}
	if name == "" && h.Typeflag != tar.TypeDir {
		return nil, errors.New("is the root, but no directory")
	}
	if h.Uid < 0 || h.Uid >= math.MaxUint32 || h.Gid < 0 || h.Gid >= math.MaxUint32 {
		return nil, fmt.Errorf("has the owner %d:%d, which Linux does not have", h.Uid, h.Gid)
	}
	return out, xattrs(out, h)
}

// xattrs copies the extended attributes from h to out.
func xattrs(out, h *tar.Header) error {
	total := 0
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, xattrPrefix)
		if !ok {
			continue
		}
		if !utf8.ValidString(name) || strings.ContainsRune(name, utf8.RuneError) || strings.Contains(name, "=") || len(name) > layer.MaxNameBytes {
			return fmt.Errorf("has an extended attribute %q, whose name cannot be kept", name)
		}
		if out.PAXRecords == nil {
			out.PAXRecords = map[string]string{}
		}
		out.PAXRecords[k] = v
		total += len(name) + len(v) + 1
	}
	if total > layer.MaxXattrBytes {
		return fmt.Errorf("has extended attributes of %d bytes, at most %d", total, layer.MaxXattrBytes)
	}
	return nil
}

func isSparse(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// boundTime is t as containerd sets it when it unpacks a tar: what is before
// the epoch or after the year 2262 becomes the epoch.
func boundTime(t time.Time) time.Time {
	epoch := time.Unix(0, 0)
	if t.Before(epoch) || t.After(time.Unix(0, math.MaxInt64)) {
		return epoch
	}
	return t
}

// checkName returns the clean form of a name and refuses what has none.
func checkName(name string) (string, error) {
	depth := 0
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." {
			continue
		}
		if depth++; part == ".." || len(part) > layer.MaxNameBytes || depth > layer.MaxDepth {
			return "", fmt.Errorf("(%.300q) has a component that is \"..\" or longer than %d bytes, or more than %d of them",
				name, layer.MaxNameBytes, layer.MaxDepth)
		}
	}
	return cleanName(name), nil
}

// cleanName is name relative to the root, "" for the root itself.
func cleanName(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// parent is the directory of a clean name.
func parent(name string) string {
	i := strings.LastIndexByte(name, '/')
	return name[:max(i, 0)]
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrNotConvertible, fmt.Errorf(format, args...))
}
