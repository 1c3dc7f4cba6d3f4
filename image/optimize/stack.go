package optimize

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// stack is the unpacked layers of an image, the topmost first.
type stack []*os.File

// openStack opens the layers' directories, the topmost first.
func openStack(dirs []string) (stack, error) {
	var s stack
	for _, dir := range dirs {
		f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("unpacked layer: %w; run this where containerd runs, in its mount namespace", err)
		}
		s = append(s, f)
	}
	return s, nil
}

func (s stack) close() {
	for _, f := range s {
		f.Close()
	}
}

// find returns the place of the layer, 0 for the topmost, whose regular file the
// overlay of all shows as name, and the file's size in bytes. The place is -1 if
// no layer has it.
func (s stack) find(name string) (layer int, size int64, err error) {
	for i, dir := range s {
		fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
		})
		switch err {
		case nil:
		case unix.ENOENT:
			continue // perhaps further down
		case unix.ENOTDIR, unix.ELOOP:
			return -1, 0, nil // something else is here, a deletion for instance
		default:
			return -1, 0, &os.PathError{Op: "open", Path: dir.Name() + "/" + name, Err: err}
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		unix.Close(fd)
		if err != nil {
			return -1, 0, &os.PathError{Op: "stat", Path: dir.Name() + "/" + name, Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return -1, 0, nil
		}
		return i, st.Size, nil
	}
	return -1, 0, nil
}
