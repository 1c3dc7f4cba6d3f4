package tree

import (
	"fmt"
	"path"
	"strings"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// Paths in this file are clean, relative to a layer's root, "" for the root
// itself, with names as they are in the layer.

// As many symbolic links as containerd and the kernel follow in one path.
const (
	maxLinks       = 255
	maxKernelLinks = 40
)

// split splits a path into its directory and last name.
func split(p string) (dir, base string) {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i], p[i+1:]
	}
	return "", p
}

func join(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}

// clean joins texts of paths by their letters alone and bounds the result to the
// root.
func clean(parts ...string) string {
	return path.Join(append([]string{"/"}, parts...)...)[1:]
}

// resolve follows the symbolic links of a path inside one layer, the last
// component's too, as containerd does (continuity's fs.RootPath). What does not
// exist is kept as it is.
func (m *Merge) resolve(root *inode, p string) (string, error) {
	if in, ok := walkPlain(root, p); ok && (in == nil || in.kind != layer.Symlink) {
		return p, nil
	}
	links := 0
	for text := p; ; {
		before := links
		next, err := m.resolveOnce(root, text, &links)
		if err != nil {
			return "", err
		}
		if links == before {
			return clean(next), nil
		}
		text = next
	}
}

// find returns what a path leads to when all its symbolic links are followed, nil
// where nothing is.
func (m *Merge) find(root *inode, p string) (*inode, error) {
	// Without links on the way, which is nearly always, it is much less work.
	if err := m.step(strings.Count(p, "/") / 4); err != nil {
		return nil, err
	}
	if in, ok := walkPlain(root, p); ok && (in == nil || in.kind != layer.Symlink) {
		return in, nil
	}
	p, err := m.resolve(root, p)
	if err != nil {
		return nil, err
	}
	return m.lookup(root, p)
}

// walkPlain looks a path up as long as there are only directories on the way. It
// reports false where something else is.
func walkPlain(root *inode, p string) (*inode, bool) {
	in := root
	for p != "" {
		if in.kind != layer.Dir {
			return nil, false
		}
		var c string
		c, p, _ = strings.Cut(p, "/")
		if in = in.dir.children[c]; in == nil {
			return nil, true
		}
	}
	return in, true
}

// resolveOnce replaces each component of a path that is a link by its target, once.
// The path and the result are texts of links or joined of such. Like its model it
// joins ".." by letters, where the kernel would go to the parent of where it is, and
// not always at once: a text that stands alone is left as it is for the next turn.
func (m *Merge) resolveOnce(root *inode, text string, links *int) (string, error) {
	done := ""
	if path.IsAbs(text) {
		done = "/"
	}
	for _, c := range strings.Split(text, "/") {
		if c == "" {
			continue
		}
		if *links > maxLinks {
			return "", fmt.Errorf("%w: more than %d symbolic links", ErrParent, maxLinks)
		}
		here := clean(done, c)
		in, err := m.lookup(root, here)
		if err != nil {
			return "", err
		}
		if in == nil || in.kind != layer.Symlink {
			done = "/" + here
		} else {
			target := in.ent.LinkName
			if err := m.step(len(target) / textStep); err != nil {
				return "", err
			}
			if done == "" || path.IsAbs(target) {
				done = target
			} else {
				done = path.Join(done, target)
			}
			*links++
		}
		if len(done) > maxDepth*(maxName+1) {
			return "", fmt.Errorf("%w: path of %d bytes", ErrLimit, len(done))
		}
		if err := m.step(len(done) / textStep); err != nil {
			return "", err
		}
	}
	return done, nil
}

// lookup finds what is at a path of one layer, as lstat(2) does: links on the way
// are followed, the last component is not. It returns nil where nothing is.
func (m *Merge) lookup(root *inode, p string) (*inode, error) {
	trail := []*inode{root} // directories from the root to where we are
	links := 0
	for p != "" {
		if err := m.step(1); err != nil {
			return nil, err
		}
		var c string
		c, p, _ = strings.Cut(p, "/")
		switch c {
		case "", ".":
			continue
		case "..":
			if len(trail) == 1 {
				return nil, errHost
			}
			trail = trail[:len(trail)-1]
			continue
		}
		in := trail[len(trail)-1].dir.children[c]
		if in == nil || p == "" {
			return in, nil
		}
		switch in.kind {
		case layer.Dir:
			trail = append(trail, in)
		case layer.Symlink:
			if links++; links > maxKernelLinks {
				return nil, fmt.Errorf("%w: more than %d symbolic links", ErrParent, maxKernelLinks)
			}
			if path.IsAbs(in.ent.LinkName) {
				return nil, errHost
			}
			p = in.ent.LinkName + "/" + p
			if err := m.step(len(p) / textStep); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("%w: %q", ErrParent, c)
		}
	}
	return trail[len(trail)-1], nil
}

// textStep is how many bytes of path cost about as much work as one look-up.
const textStep = 32

// step counts n look-ups, or work like theirs.
func (m *Merge) step(n int) error {
	before := m.steps
	m.steps += int64(n)
	if m.steps > maxSteps {
		return fmt.Errorf("%w: it takes too many look-ups to follow the layers' symbolic links", ErrLimit)
	}
	if before>>16 != m.steps>>16 {
		return m.ctx.Err()
	}
	return nil
}

// errHost is for a link on the way to another link which leads out of the layer's
// root: containerd follows it into the machine it runs on.
var errHost = fmt.Errorf("%w: symbolic links lead out of the layer", ErrParent)

// makeParents makes the directories of a resolved path that do not exist, and
// returns the last.
func (u *upper) makeParents(p string) (*inode, error) {
	dir := u.root
	for done, depth := 0, 0; done < len(p); depth++ {
		if depth >= maxDepth-1 {
			return nil, fmt.Errorf("%w: more than %d directories deep", ErrLimit, maxDepth)
		}
		end := strings.IndexByte(p[done:], '/') + done
		if end < done {
			end = len(p)
		}
		name := p[done:end]
		in := dir.dir.children[name]
		if in == nil {
			if len(name) > maxName {
				return nil, fmt.Errorf("%w: name of %d bytes (at most %d)", ErrLimit, len(name), maxName)
			}
			if u.implicit++; u.implicit > maxImplicit {
				return nil, fmt.Errorf("%w: more than %d directories without an entry", ErrLimit, maxImplicit)
			}
			in = newDir()
			if err := u.inherit(in, dir); err != nil {
				return nil, err
			}
			in.chmod(0o755)
			dir.dir.children[name] = in
			if err := u.copyAttributes(in, p[:end]); err != nil {
				return nil, err
			}
		}
		if in.kind != layer.Dir {
			return nil, fmt.Errorf("%w: %q", ErrParent, p[:end])
		}
		dir, done = in, end+1
	}
	return dir, nil
}

// copyAttributes gives a directory without an entry the attributes that the first
// lower layer that has something at its path has there. Each lower layer is
// asked for itself, whiteouts or not: so does containerd.
//
// The modification time is copied too. In containerd it would be, in most cases,
// the time of the unpacking: this is the nearest that is the same everywhere.
func (u *upper) copyAttributes(in *inode, p string) error {
	for i := len(u.uppers) - 1; i >= 0; i-- {
		lower, err := u.find(u.uppers[i], p)
		if err != nil {
			return err
		}
		if lower == nil {
			continue
		}
		if lower.kind == layer.Dir {
			in.copyFrom(lower)
		}
		return nil
	}
	if u.overNormal {
		return fmt.Errorf("%w: %q", ErrBelow, p)
	}
	return nil
}
