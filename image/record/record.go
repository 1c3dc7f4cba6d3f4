// Package record notes which files below a directory are opened, in the order in
// which each was opened first: what a container needs when it starts.
//
// It asks the kernel, by fanotify, for the opens in one file system, whoever
// makes them; that is exact where a file system is one container's own, as its
// overlay is. Which parts of a file are read fanotify does not tell.
package record

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxFiles is how many files one [Recording] can name.
const MaxFiles = 1 << 18

// eventsAtOnce is how many events are read together. Each comes with an open
// file.
const eventsAtOnce = 64

// Recording is what was opened.
type Recording struct {
	// Files are the regular files' paths, relative to the directory and without
	// symbolic links in them, each once.
	Files []string
	// Lost tells that some are missing: they came faster than they could be
	// noted, or there were more than [MaxFiles].
	Lost bool
}

// Recorder makes one recording. Its methods are for one goroutine.
type Recorder struct {
	events *os.File // fanotify's
	root   *os.File // the directory, from Start on
	prefix string   // of the paths of files in it, as the kernel tells them

	recording Recording
	seen      map[string]bool
	following sync.WaitGroup
	failed    error // of following
}

// New returns a recorder that has not begun. The error says what the kernel or
// the user's rights lack for it. The caller closes it.
func New() (*Recorder, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK,
		// Of a FIFO nobody waits for the other side, and no access time changes.
		unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE|unix.O_NONBLOCK|unix.O_NOATIME)
	switch {
	case errors.Is(err, unix.EPERM):
		return nil, fmt.Errorf("recording which files are opened takes root's rights (CAP_SYS_ADMIN, for fanotify): %w; run this as root", err)
	case errors.Is(err, unix.ENOSYS):
		return nil, fmt.Errorf("recording which files are opened takes a kernel with fanotify (CONFIG_FANOTIFY): %w; use another kernel", err)
	case errors.Is(err, unix.EMFILE):
		return nil, fmt.Errorf("too many files are watched on this machine: %w; raise the sysctl fs.fanotify.max_user_groups", err)
	case err != nil:
		return nil, fmt.Errorf("fanotify: %w", err)
	}
	return &Recorder{events: os.NewFile(uintptr(fd), "fanotify"), seen: map[string]bool{}}, nil
}

// Start begins to note what is opened in the file system of the directory root,
// which may be another process's, below /proc. Paths are those below it.
func (r *Recorder) Start(root string) error {
	if r.root != nil {
		return errors.New("record: it has begun already")
	}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: root, Err: err}
	}
	r.root = os.NewFile(uintptr(fd), root)
	if r.prefix, err = pathOf(fd); err != nil {
		return err
	}
	r.prefix = strings.TrimSuffix(r.prefix, "/") + "/"
	var marked error
	err = r.control(func(events int) {
		marked = unix.FanotifyMark(events, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_OPEN, fd, ".")
	})
	if err := errors.Join(err, marked); err != nil {
		return fmt.Errorf("watch what is opened in %s: %w; this takes Linux 4.20 and CAP_SYS_ADMIN", root, err)
	}
	r.following.Go(func() { r.failed = r.follow() })
	return nil
}

// Stop ends the recording and returns all that was opened before the call.
func (r *Recorder) Stop() (Recording, error) {
	if r.root == nil {
		return Recording{}, errors.New("record: it has not begun")
	}
	if err := r.halt(); err != nil {
		return Recording{}, err
	}
	var flushed error
	err := r.control(func(events int) {
		flushed = unix.FanotifyMark(events, unix.FAN_MARK_FLUSH|unix.FAN_MARK_FILESYSTEM, 0, int(r.root.Fd()), ".")
	})
	if err := errors.Join(err, flushed); err != nil {
		return Recording{}, fmt.Errorf("end watching what is opened in %s: %w", r.root.Name(), err)
	}
	// What was opened was in the queue before open returned, and no more comes.
	buf := newBuffer()
	for {
		var n int
		var failed error
		if err := r.control(func(fd int) { n, failed = unix.Read(fd, buf.bytes()) }); err != nil {
			return Recording{}, err
		}
		switch {
		case failed == unix.EAGAIN:
			return r.recording, nil
		case failed == nil:
			r.note(buf, n)
		case !passable(failed):
			return Recording{}, fmt.Errorf("read what was opened: %w", failed)
		}
	}
}

// Close ends the recording and everything about it.
func (r *Recorder) Close() error {
	err := r.halt()
	if r.root != nil {
		err = errors.Join(err, r.root.Close())
	}
	return errors.Join(err, r.events.Close())
}

// halt ends following, if that runs.
func (r *Recorder) halt() error {
	if err := r.events.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return err
	}
	r.following.Wait()
	return r.failed
}

// follow notes events as they come, so that the queue does not run full, until
// halt ends it.
func (r *Recorder) follow() error {
	buf := newBuffer()
	for {
		n, err := r.events.Read(buf.bytes())
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err == nil:
			r.note(buf, n)
		case !passable(err):
			return fmt.Errorf("read what is opened: %w", err)
		}
	}
}

// passable tells whether err is about the one event whose file the kernel could
// not open for us, such as a device that is not there.
func passable(err error) bool {
	for _, of := range []error{unix.EINTR, unix.ENXIO, unix.ENODEV, unix.EACCES, unix.EPERM, unix.EIO, unix.ESTALE, unix.ENOENT} {
		if errors.Is(err, of) {
			return true
		}
	}
	return false
}

// buffer takes events, which have no more than this fixed part here.
type buffer []unix.FanotifyEventMetadata

func newBuffer() buffer { return make(buffer, eventsAtOnce) }

func (b buffer) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(b))), len(b)*unix.FAN_EVENT_METADATA_LEN)
}

// note notes the events in the first n bytes of buf, and closes their files.
func (r *Recorder) note(buf buffer, n int) {
	for _, event := range buf[:n/unix.FAN_EVENT_METADATA_LEN] {
		if event.Mask&unix.FAN_Q_OVERFLOW != 0 {
			r.recording.Lost = true
		}
		if event.Fd >= 0 {
			r.file(int(event.Fd))
			unix.Close(int(event.Fd))
		}
	}
}

// file notes the file fd, if it is a regular file and still has the path by
// which it was opened.
func (r *Recorder) file(fd int) {
	var opened, named unix.Stat_t
	if err := unix.Fstat(fd, &opened); err != nil || opened.Mode&unix.S_IFMT != unix.S_IFREG {
		return
	}
	path, err := pathOf(fd)
	if err != nil {
		return
	}
	name, ok := strings.CutPrefix(path, r.prefix)
	if !ok || r.seen[name] {
		return
	}
	// The kernel's path can be of a name that is gone, or of another mount of
	// the file system. It counts if it leads to the file.
	at, err := unix.Openat2(int(r.root.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return
	}
	defer unix.Close(at)
	if err := unix.Fstat(at, &named); err != nil || named.Dev != opened.Dev || named.Ino != opened.Ino {
		return
	}
	if len(r.seen) == MaxFiles {
		r.recording.Lost = true
		return
	}
	r.seen[name] = true
	r.recording.Files = append(r.recording.Files, name)
}

// pathOf is the path that the kernel knows of an open file.
func pathOf(fd int) (string, error) {
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// control calls do with fanotify's descriptor, which stays open meanwhile.
func (r *Recorder) control(do func(fd int)) error {
	c, err := r.events.SyscallConn()
	if err != nil {
		return err
	}
	return c.Control(func(fd uintptr) { do(int(fd)) })
}
