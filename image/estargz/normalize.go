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

// normalizer copies a tar so that estargz.Build makes of the copy what a
// container runtime makes of the original. Build reads contents at their
// offset in the tar, and so takes a sparse file's map for its contents; it drops all but
// the last entry of a name, and so what links to an earlier one meant; it does
// not know global headers; and the TOC knows no way through a symlink.
//
// What the copy cannot mend is refused with ErrNotConvertible.
type normalizer struct {
	out     *tar.Writer
	payload int64 // bytes of files' contents written
	// times are the modification times that are not in whole seconds, by
	// clean name. The TOC that Build makes lacks the rest.
	times map[string]time.Time
	seen  map[string]*node
}

// node is what the entries so far have put under a name.
type node struct {
	dir    bool
	xattrs bool // has some
	linked bool // a hard link refers to it
}

func newNormalizer(w io.Writer) *normalizer {
	return &normalizer{out: tar.NewWriter(w), times: map[string]time.Time{}, seen: map[string]*node{}}
}

// copy writes the tar in r to the normalizer's writer.
func (n *normalizer) copy(r io.Reader) error {
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if err == io.EOF {
			return n.out.Close()
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
	delete(n.times, name)
	if out.ModTime.Nanosecond() != 0 {
		n.times[name] = out.ModTime
	}
	if err := n.out.WriteHeader(out); err != nil {
		return refuse("%q cannot be written to a tar: %w", name, err)
	}
	if out.Size == 0 {
		return nil
	}
	n.payload += out.Size
	if _, err := io.Copy(n.out, in); err != nil {
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
	if old := n.seen[name]; old != nil {
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
	if name != "" {
		n.seen[name] = &node{dir: isDir, xattrs: xattrs}
	}
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
