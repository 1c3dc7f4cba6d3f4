package layer

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer/internal/tocjson"
)

// entry checks e, which is no chunk, against the limits and turns it into an
// Entry without a key.
func (p *parser) entry(e *tocjson.Entry) (Entry, error) {
	var out Entry
	raw, err := trueBytes(e.Name, e.RawName)
	if err != nil {
		return out, fmt.Errorf("name %q: %w", e.Name, err)
	}
	clean, err := cleanName(raw)
	if err != nil {
		return out, err
	}
	out.Name = p.name(clean)
	if err := p.inode(&out, e); err != nil {
		return out, fmt.Errorf("%q: %w", out.Name, err)
	}
	return out, nil
}

// inode fills in all but the name.
func (p *parser) inode(out *Entry, e *tocjson.Entry) (err error) {
	switch string(e.Type) {
	case "dir":
		out.Type = Dir
	case "reg":
		out.Type = Reg
		out.Size = e.Size
	case "symlink":
		out.Type = Symlink
	case "hardlink":
		out.Type = Hardlink
	case "char":
		out.Type = Char
	case "block":
		out.Type = Block
	case "fifo":
		out.Type = Fifo
	default:
		return fmt.Errorf("%w: unknown type %q", ErrInvalid, e.Type)
	}
	const maxID = 1<<32 - 2 // the one above means "no ID" to chown
	switch {
	case out.Name == "" && out.Type != Dir:
		return fmt.Errorf("%w: the root is no directory", ErrInvalid)
	case e.Size < 0:
		return fmt.Errorf("%w: negative size %d", ErrInvalid, e.Size)
	case e.Mode < 0:
		return fmt.Errorf("%w: negative mode %d", ErrInvalid, e.Mode)
	case e.UID < 0 || e.UID > maxID || e.GID < 0 || e.GID > maxID:
		return fmt.Errorf("%w: owner %d:%d is out of range", ErrInvalid, e.UID, e.GID)
	}
	// The mode is that of a tar header, whose low twelve bits are those of
	// Linux. Some tools put the type in the bits above; it is told by Type.
	out.Mode = uint32(e.Mode & 0o7777)
	out.UID, out.GID = uint32(e.UID), uint32(e.GID)
	if out.Type == Char || out.Type == Block {
		// Linux has 12 bits for the major number and 20 for the minor one.
		if e.DevMajor < 0 || e.DevMajor >= 1<<12 || e.DevMinor < 0 || e.DevMinor >= 1<<20 {
			return fmt.Errorf("%w: device number %d:%d is out of range", ErrInvalid, e.DevMajor, e.DevMinor)
		}
		out.Major, out.Minor = uint32(e.DevMajor), uint32(e.DevMinor)
	}
	if out.LinkName, err = p.linkName(out, e); err != nil {
		return err
	}
	if out.ModTime, err = p.time(e.ModTime); err != nil {
		return err
	}
	out.Xattrs, err = xattrs(out.Type, e.Xattrs)
	return err
}

// trueBytes is the bytes of a name: raw where they are given, else name if it
// can have lost none.
func trueBytes(name, raw []byte) ([]byte, error) {
	if len(raw) == 0 {
		if bytes.Contains(name, []byte("\uFFFD")) {
			return nil, fmt.Errorf("%w: the name lost bytes that are no UTF-8 when the layer was built", ErrNotLazy)
		}
		return name, nil
	}
	// Whoever reads the name alone must see the same file: JSON writers put
	// U+FFFD for each byte that is no UTF-8, as this conversion does.
	if string([]rune(string(raw))) != string(name) {
		return nil, fmt.Errorf("%w: the bytes beside it are of another name, %q", ErrInvalid, raw)
	}
	return raw, nil
}

// cleanName returns the form of Entry.Name of b, in its place. As every
// reader of eStargz does, it takes a leading "/" or "./" for nothing.
func cleanName(b []byte) ([]byte, error) {
	clean, rest, depth := b[:0], b, 0
	if bytes.IndexByte(b, 0) >= 0 {
		return nil, fmt.Errorf("%w: name %.300q holds a NUL", ErrInvalid, b)
	}
	for len(rest) > 0 {
		part := rest
		if i := bytes.IndexByte(rest, '/'); i >= 0 {
			part, rest = rest[:i], rest[i+1:]
		} else {
			rest = nil
		}
		switch {
		case len(part) == 0 || string(part) == ".":
			continue
		case string(part) == "..":
			return nil, fmt.Errorf("%w: a name leads upwards with \"..\"", ErrInvalid)
		case len(part) > MaxNameBytes:
			return nil, fmt.Errorf("%w: a name of %d bytes, at most %d", ErrLimit, len(part), MaxNameBytes)
		}
		if depth++; depth > MaxDepth {
			return nil, fmt.Errorf("%w: a name %d directories deep, at most %d", ErrLimit, depth, MaxDepth)
		}
		if len(clean) > 0 {
			clean = append(clean, '/')
		}
		clean = append(clean, part...)
	}
	return clean, nil
}

// linkName is the link's target: as it is for a symlink, in the form of
// Entry.Name for a hard link.
func (p *parser) linkName(out *Entry, e *tocjson.Entry) (string, error) {
	if out.Type != Symlink && out.Type != Hardlink {
		return "", nil
	}
	raw, err := trueBytes(e.LinkName, e.RawLinkName)
	if err != nil {
		return "", fmt.Errorf("link to %q: %w", e.LinkName, err)
	}
	if out.Type == Symlink {
		switch {
		case len(raw) == 0 || bytes.IndexByte(raw, 0) >= 0:
			return "", fmt.Errorf("%w: symlink to %q", ErrInvalid, raw)
		case len(raw) > maxLinkBytes:
			return "", fmt.Errorf("%w: symlink to a name of %d bytes, at most %d", ErrLimit, len(raw), maxLinkBytes)
		}
		return p.name(raw), nil
	}
	clean, err := cleanName(raw)
	switch {
	case err != nil:
		return "", err
	case len(clean) == 0 || string(clean) == out.Name:
		return "", fmt.Errorf("%w: hard link to %q", ErrInvalid, e.LinkName)
	}
	return p.name(clean), nil
}

// time reads a modification time: RFC 3339, with any part of a second; none
// is the epoch, and so is what is before it or after the year 2262, as when
// containerd unpacks a tar.
func (p *parser) time(text []byte) (time.Time, error) {
	epoch := time.Unix(0, 0).UTC()
	if len(text) == 0 {
		return epoch, nil
	}
	if bytes.Equal(text, p.lastTime) {
		return p.modTime, nil
	}
	var t time.Time
	if err := t.UnmarshalText(text); err != nil {
		return t, fmt.Errorf("%w: modification time %.100q is not as in RFC 3339", ErrInvalid, text)
	}
	if last := time.Unix(0, 1<<63-1); t.Before(epoch) || t.After(last) {
		t = epoch
	}
	p.lastTime, p.modTime = append(p.lastTime[:0], text...), t.UTC()
	return p.modTime, nil
}

// xattrs checks and sorts an inode's extended attributes. Those that
// containerd does not set when it unpacks a tar are left out, and so are
// overlay's own.
func xattrs(typ Type, in []tocjson.Xattr) ([]Xattr, error) {
	if len(in) == 0 {
		return nil, nil
	}
	out := make([]Xattr, 0, len(in))
	for _, x := range in {
		name := string(x.Name)
		switch {
		case len(name) > MaxNameBytes:
			return nil, fmt.Errorf("%w: an extended attribute with a name of %d bytes, at most %d", ErrLimit, len(name), MaxNameBytes)
		case isLossy(name):
			return nil, fmt.Errorf("%w: the name of its extended attribute %q lost bytes that are no UTF-8", ErrNotLazy, name)
		case strings.IndexByte(name, 0) >= 0:
			return nil, fmt.Errorf("%w: name of an extended attribute %q holds a NUL", ErrInvalid, name)
		}
		if keepXattr(typ, name) {
			out = append(out, Xattr{Name: name, Value: bytes.Clone(x.Value)})
		}
	}
	slices.SortFunc(out, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
	for i := 1; i < len(out); i++ {
		if out[i].Name == out[i-1].Name {
			return nil, fmt.Errorf("%w: extended attribute %q is given twice", ErrInvalid, out[i].Name)
		}
	}
	if len(out) == 0 {
		return nil, nil
	}
	return out, nil
}

// keepXattr reports whether containerd's unpacking would leave an inode of
// this type with this attribute: it never sets trusted.*, and the kernel takes
// user.* on files and directories only, and no namespace but these.
func keepXattr(typ Type, name string) bool {
	switch {
	case strings.HasPrefix(name, "user."):
		return (typ == Reg || typ == Dir || typ == Hardlink) && !strings.HasPrefix(name, "user.overlay.")
	case name == "system.posix_acl_access", name == "system.posix_acl_default":
		return typ != Symlink
	default:
		return strings.HasPrefix(name, "security.")
	}
}
