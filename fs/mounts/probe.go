package mounts

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/tree"
)

// probePrefix begins the names of the directories that probes work in.
const probePrefix = ".ipfs-stargz-probe-"

// content is that of the only file in the tree that probes mount.
const content = "read through the kernel"

// Probe finds out how this kernel mounts trees and overlays on the file system
// of dir, an existing directory, by mounting some and reading them. The mounts
// are seen by nobody, and end with this process in any case; what a probe that
// was killed left in dir the next one removes.
//
// When no overlay over a tree can be mounted it returns an error that says
// why, with the Kernel that it found all the same. Without a Kernel nothing
// could be found out.
func Probe(ctx context.Context, dir string) (*Kernel, error) {
	return probe(ctx, dir, func(string) error { return nil })
}

// probe refuses steps in the kernel's stead where refuse returns an error.
func probe(ctx context.Context, dir string, refuse func(step string) error) (_ *Kernel, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	unlock, err := lockProbes(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("find out what the kernel can mount: %w", err)
	}
	defer unlock()
	k := &Kernel{}
	err = privately(func() (err error) {
		work, err := os.MkdirTemp(dir, probePrefix)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
		p := &prober{ctx: ctx, dir: work, refuse: refuse, k: k}
		if err := p.prepare(); err != nil {
			return err
		}
		p.run()
		return ctx.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("find out what the kernel can mount in %s: %w", dir, err)
	}
	if k.Data == "" {
		return k, fmt.Errorf("the kernel cannot serve lazy layers itself: %s", k.Reasons(""))
	}
	return k, nil
}

// lockProbes makes sure that this is the only probe in dir, and removes what
// others left.
func lockProbes(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("another process has locked %s: %w", dir, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, probePrefix+"*"))
	if err != nil {
		return nil, err
	}
	for _, l := range left {
		if err := os.RemoveAll(l); err != nil {
			return nil, err
		}
	}
	return func() { f.Close() }, nil
}

// prober tries one way after the other.
type prober struct {
	ctx    context.Context
	dir    string // where it works
	refuse func(step string) error
	k      *Kernel
}

// path returns that of a name in the prober's directory.
func (p *prober) path(name string) string { return filepath.Join(p.dir, name) }

// prepare makes a tree's image, and what overlays over it are made of.
func (p *prober) prepare() error {
	for _, d := range []string{"tree", "names", "normal", "none", "data", "merged"} {
		if err := os.Mkdir(p.path(d), 0o755); err != nil {
			return err
		}
	}
	key := layer.Key(sha256.Sum256([]byte(content)))
	for _, f := range []string{"data/" + key.String(), "normal/file"} {
		if err := os.WriteFile(p.path(f), []byte(content), 0o644); err != nil {
			return err
		}
	}
	if err := writeName(p.path("names/file"), key); err != nil {
		return err
	}
	image, err := os.Create(p.path("image"))
	if err != nil {
		return err
	}
	file := layer.Entry{Name: "file", Type: layer.Reg, Mode: 0o644, Size: int64(len(content)), Key: key}
	_, err = tree.Build(p.ctx, image, [][]layer.Entry{{file}}, tree.Options{})
	return errors.Join(err, image.Close())
}

// writeName makes a file that has its contents elsewhere, as one in a tree has
// them.
func writeName(name string, key layer.Key) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return errors.Join(
		f.Truncate(int64(len(content))),
		unix.Fsetxattr(int(f.Fd()), erofs.XattrMetacopy, nil, 0),
		unix.Fsetxattr(int(f.Fd()), erofs.XattrRedirect, []byte("/"+key.String()), 0),
	)
}

// try takes a step, and notes why if it cannot be taken.
func (p *prober) try(step string, do func() error) bool {
	err := p.ctx.Err()
	if err == nil {
		err = p.refuse(step)
	}
	if err == nil {
		err = do()
	}
	if err != nil {
		// Nobody finds the paths when they read this.
		why := strings.ReplaceAll(err.Error(), p.dir+"/", "")
		p.k.Refused = append(p.k.Refused, Refusal{Step: step, Why: why})
	}
	return err == nil
}

// run fills in the Kernel with the first way of each kind that works.
func (p *prober) run() {
	for _, set := range []OptionSet{Separate, OneString} {
		if p.try(StepPlain+string(set), func() error { return p.plain(set) }) {
			p.k.Plain = set
			break
		}
	}
	// In mode fuse a tree is a file system like others, and does not count as
	// one on another: this directory stands for it.
	for _, set := range []OptionSet{Separate, SeparateMetacopy, OneString} {
		if p.try(StepNames+"by "+string(set), func() error { return p.names(set) }) {
			p.k.Names = set
			break
		}
	}
	for _, source := range []TreeSource{FromFile, FromLoop} {
		if p.over(source) {
			return
		}
	}
}

// over tries trees from this source, and reports whether overlays over them
// work.
func (p *prober) over(source TreeSource) bool {
	from := "from a " + string(source)
	k := &Kernel{Trees: source}
	if !p.try(StepTree+string(source), func() error { return k.MountTree(p.path("image"), p.path("tree")) }) {
		return false
	}
	// Should it stay, it goes with the thread.
	defer func() { _ = Unmount(p.path("tree")) }()
	for _, set := range []OptionSet{Separate, SeparateMetacopy, OneString} {
		if p.try(StepData+from+" by "+string(set), func() error { return p.data(set) }) {
			p.k.Trees, p.k.Data = source, set
			break
		}
	}
	if p.k.Data == "" {
		return false
	}
	p.k.IDMapped = p.try(StepOwners+from, p.mapped)
	return true
}

// plain tries an overlay without data-only layers.
func (p *prober) plain(set OptionSet) error {
	return p.overlay(&Kernel{Plain: set}, Overlay{Lower: []string{p.path("normal")}})
}

// data tries overlays over the tree.
func (p *prober) data(set OptionSet) error {
	return p.withData(&Kernel{Data: set}, Overlay{Lower: []string{p.path("tree")}})
}

// names tries overlays over what stands for a tree that FUSE serves.
func (p *prober) names(set OptionSet) error {
	return p.withData(&Kernel{Names: set}, Overlay{Lower: []string{p.path("names")}, Names: true})
}

// withData tries overlays that find contents in data-only layers, with and
// without a normal layer below.
func (p *prober) withData(k *Kernel, o Overlay) error {
	o.Data = []string{p.path("none"), p.path("data")}
	if err := p.overlay(k, o); err != nil {
		return err
	}
	o.Lower, o.OverNormal = append(o.Lower, p.path("normal")), true
	if err := p.overlay(k, o); err != nil {
		return fmt.Errorf("with a normal layer below: %w", err)
	}
	return nil
}

// overlay mounts an overlay read-only and then to be written to, and reads its
// file.
func (p *prober) overlay(k *Kernel, o Overlay) error {
	if err := p.read(k, o, func(string) error { return nil }); err != nil {
		return err
	}
	o.Upper, o.Work = p.path("upper"), p.path("work")
	defer func() { _ = errors.Join(os.RemoveAll(o.Upper), os.RemoveAll(o.Work)) }()
	if err := errors.Join(os.Mkdir(o.Upper, 0o755), os.Mkdir(o.Work, 0o755)); err != nil {
		return err
	}
	return p.read(k, o, func(file string) error { return os.Chmod(file, 0o600) })
}

// read mounts an overlay, changes its file, and reads it.
func (p *prober) read(k *Kernel, o Overlay, change func(file string) error) (err error) {
	merged := p.path("merged")
	if err := k.MountOverlay(merged, o); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, Unmount(merged)) }()
	file := filepath.Join(merged, "file")
	if err := change(file); err != nil {
		return err
	}
	got, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if string(got) != content {
		return fmt.Errorf("read %s: %q, which is not what it holds", file, got)
	}
	return nil
}

// mapped tries to show the tree with another owner.
func (p *prober) mapped() error {
	const owner = 100_000
	ids := []IDMap{{Inside: 0, Outside: owner, Count: 1}}
	userns, err := userNamespace(ids, ids)
	if err != nil {
		return err
	}
	defer userns.Close()
	fd, err := mappedClone(p.path("tree"), userns)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Uid != owner || st.Gid != owner {
		return fmt.Errorf("the owner is %d:%d, want %d", st.Uid, st.Gid, owner)
	}
	return nil
}
