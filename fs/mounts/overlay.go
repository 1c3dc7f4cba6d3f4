package mounts

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Overlay is what an overlay is made of. All paths are absolute.
type Overlay struct {
	Lower []string // topmost first
	// Data holds directories of contents, in the order in which overlayfs is to
	// ask them. None: Lower has its contents itself.
	Data []string
	// Upper and Work, on one file system, take what is written. Empty: the
	// overlay is read-only.
	Upper, Work string
	// OverNormal says that a tree in Lower lies over a directory that is none.
	OverNormal bool
	// Names says that the trees in Lower are served by FUSE, not mounted.
	Names bool
	// UIDs and GIDs, if any, show the owners of Lower and Data to the user
	// namespace that has these mappings. Upper belongs to its users already.
	UIDs, GIDs []IDMap
}

// MountOverlay mounts an overlay at target, an existing and empty directory.
func (k *Kernel) MountOverlay(target string, o Overlay) error {
	set := k.Data
	switch {
	case len(o.Data) == 0:
		set = k.Plain
	case o.Names:
		set = k.Names
	}
	var err error
	switch {
	case set == "":
		err = errors.New("this kernel takes no such overlay (set fs.mode = \"auto\")")
	case len(o.UIDs)+len(o.GIDs) > 0:
		err = mountMapped(set, target, o)
	default:
		err = set.mount(target, o)
	}
	if err != nil {
		return fmt.Errorf("mount overlay of %d layers at %s: %w", len(o.Lower), target, err)
	}
	return nil
}

// mount mounts an overlay in this way.
func (s OptionSet) mount(target string, o Overlay) error {
	if o.Upper == "" && len(o.Lower)+len(o.Data) == 1 {
		// overlayfs wants two directories, and what it is mounted at is one
		// with nothing in it.
		o.Lower = []string{o.Lower[0], target}
	}
	if s == OneString {
		return mountString(target, s.flags(o), o)
	}
	return mountSeparate(target, s.flags(o), o)
}

// flags are the options of an overlay that are no layers.
func (s OptionSet) flags(o Overlay) [][2]string {
	flags := [][2]string{{"index", "off"}}
	if len(o.Data) > 0 && (s != Separate || o.OverNormal) {
		// Over a normal layer, overlayfs looks past it for a file's contents
		// only this way. It also makes a chmod in the container copy up no
		// contents, and a renamed directory a reference to the lower one,
		// which only overlays like this one understand; so it is not for all.
		flags = append(flags, [2]string{"metacopy", "on"})
	}
	return flags
}

// mountSeparate mounts by the kernel's newer calls (fsopen(2)): they take one
// directory at a time, so that their number is not bounded by a page.
func mountSeparate(target string, flags [][2]string, o Overlay) error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return explainOverlay(fmt.Errorf("fsopen overlay: %w", err))
	}
	defer unix.Close(fd)
	options := make([][2]string, 0, len(o.Lower)+len(o.Data)+len(flags)+2)
	for _, l := range o.Lower {
		options = append(options, [2]string{"lowerdir+", l})
	}
	for _, d := range o.Data {
		options = append(options, [2]string{"datadir+", d})
	}
	if o.Upper != "" {
		// Of these alone the kernel takes backslashes for an escape.
		options = append(options, [2]string{"upperdir", escapePath.Replace(o.Upper)}, [2]string{"workdir", escapePath.Replace(o.Work)})
	}
	for _, kv := range append(options, flags...) {
		if err := unix.FsconfigSetString(fd, kv[0], kv[1]); err != nil {
			return fmt.Errorf("%s=%s: %w%s", kv[0], kv[1], err, kernelSays(fd))
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return fmt.Errorf("%w%s", err, kernelSays(fd))
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(m)
	return moveMount(m, target)
}

// kernelSays returns what the kernel has to say of the last error, if anything.
func kernelSays(fd int) string {
	b := make([]byte, 1024)
	n, err := unix.Read(fd, b)
	if err != nil || n == 0 {
		return ""
	}
	// "e " says that it is an error.
	return " (" + strings.TrimPrefix(strings.TrimSpace(string(b[:n])), "e ") + ")"
}

// moveMount attaches a mount that is nowhere yet.
func moveMount(fd int, target string) error {
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	return nil
}

// mountString mounts by mount(2), which copies one page of options.
func mountString(target string, flags [][2]string, o Overlay) error {
	options := []string{"lowerdir=" + joinEscaped(o.Lower, ":")}
	if len(o.Data) > 0 {
		options[0] += "::" + joinEscaped(o.Data, "::")
	}
	if o.Upper != "" {
		options = append(options, "upperdir="+escapePath.Replace(o.Upper), "workdir="+escapePath.Replace(o.Work))
	}
	for _, kv := range flags {
		options = append(options, kv[0]+"="+kv[1])
	}
	data := strings.Join(options, ",")
	if page := os.Getpagesize(); len(data) >= page {
		return fmt.Errorf("the options take %d bytes and mount(2) takes %d: so many layers want a shorter root in the configuration, or Linux 6.8", len(data), page-1)
	}
	return explainOverlay(unix.Mount("overlay", target, "overlay", 0, data))
}

// escapePath writes a path as a value of mount(2)'s options.
var escapePath = strings.NewReplacer(`\`, `\\`, `,`, `\,`)

// escapeLayer writes a path as one of those in lowerdir.
var escapeLayer = strings.NewReplacer(`\`, `\\`, `,`, `\,`, `:`, `\:`)

func joinEscaped(dirs []string, sep string) string {
	escaped := make([]string, len(dirs))
	for i, d := range dirs {
		escaped[i] = escapeLayer.Replace(d)
	}
	return strings.Join(escaped, sep)
}

// explainOverlay adds to an error what it means for an overlay.
func explainOverlay(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w (the kernel has no overlayfs: load the module overlay)", err)
	}
	return err
}
