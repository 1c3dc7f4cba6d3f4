package fs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
)

// verified has what this process knows of the images that it found to be as they
// were written.
type verified struct {
	mu     sync.Mutex
	stamps map[string]stamp // by the tree's name
}

// stamp is what changes when somebody changes a file, or puts another in its place.
type stamp struct {
	ino          uint64
	size         int64
	mtime, ctime unix.Timespec
}

func stampOf(path string) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return stamp{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return stamp{st.Ino, st.Size, st.Mtim, st.Ctim}, nil
}

// add says that the image of this name was just found or made whole.
func (v *verified) add(name string, s stamp) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.stamps == nil {
		v.stamps = map[string]stamp{}
	}
	v.stamps[name] = s
}

func (v *verified) has(name string, s stamp) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	was, ok := v.stamps[name]
	return ok && was == s
}

func (v *verified) remove(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.stamps, name)
}

var errNoImage = errors.New("there is no image yet")

// verify returns why the image of this name cannot be used: errNoImage where there
// is none, nil if it is what was built. An image is read once by each process
// that uses it, and again when its file was changed.
func (ts *trees) verify(name string) error {
	s, err := stampOf(ts.image(name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errNoImage
	case err != nil || ts.verified.has(name, s):
		return err
	}
	o, err := ts.readOrigin(name)
	if err != nil {
		return fmt.Errorf("what it was built from is not known: %w", err)
	}
	im, err := erofs.Open(ts.image(name))
	if err != nil {
		return err
	}
	uuid := im.UUID()
	err = im.Verify()
	if err == nil && !bytes.Equal(uuid[:], o.UUID) {
		err = errors.New("it is the image of another tree")
	}
	if err = errors.Join(err, im.Close()); err == nil {
		ts.verified.add(name, s)
	}
	return err
}
