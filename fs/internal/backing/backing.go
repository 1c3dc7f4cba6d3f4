// Package backing decides which opened files of a FUSE mount the kernel reads
// by itself (passthrough), and keeps the number of files that are registered
// with it for that within a bound.
//
// The kernel refuses (EIO) to have one inode open in both ways. So the first
// open of a node decides, and all others go its way until the last one is
// released. What is kept here is that and no more: the choice can be made anew
// for every node that is not open.
package backing

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Limit is how many files a mount has registered at once, at most: each is an
// open file, beside those that the daemon has.
const Limit = 1024

// Kernel is a mount's connection to the kernel; [fuse.Server] is one.
type Kernel interface {
	RegisterBackingFd(m *fuse.BackingMap) (id int32, errno syscall.Errno)
	UnregisterBackingFd(id int32) syscall.Errno
}

// Pool is the backing files of one mount. It may be used by several goroutines
// at once.
type Pool struct {
	kernel Kernel
	limit  int64
	log    *slog.Logger
	off    atomic.Bool  // for good
	used   atomic.Int64 // files registered

	mu    sync.Mutex
	nodes map[uint64]*node // those that are open
}

// node is an inode that is open.
type node struct {
	opens  int // guarded by Pool.mu
	decide sync.Once
	id     atomic.Int32 // 0: it is read through FUSE
}

// New returns a pool of at most limit files (see [Limit]; 0: none, so that all
// is read through FUSE).
func New(kernel Kernel, limit int, log *slog.Logger) *Pool {
	return &Pool{kernel: kernel, limit: int64(limit), log: log, nodes: map[uint64]*node{}}
}

// Acquire is to be called when a node is opened. It returns the id of its
// backing file, for the answer to the kernel, or false where the node has to be
// read through FUSE. For a node that was not open it calls open for the file,
// which must be complete and never change; any error of it means that there is
// none now, [fs.ErrNotExist] usually. Each call needs one of [Pool.Release].
func (p *Pool) Acquire(id uint64, open func() (*os.File, error)) (backingID int32, ok bool) {
	p.mu.Lock()
	n := p.nodes[id]
	if n == nil {
		n = new(node)
		p.nodes[id] = n
	}
	n.opens++
	p.mu.Unlock()
	n.decide.Do(func() { n.id.Store(p.register(open)) })
	backingID = n.id.Load()
	return backingID, backingID != 0
}

// Release is to be called when a node is released. A node that was not
// acquired here is nothing to it.
func (p *Pool) Release(id uint64) {
	p.mu.Lock()
	n := p.nodes[id]
	if n == nil {
		p.mu.Unlock()
		return
	}
	n.opens--
	last := n.opens == 0
	if last {
		delete(p.nodes, id)
	}
	p.mu.Unlock()
	if backingID := n.id.Load(); last && backingID != 0 {
		_ = p.kernel.UnregisterBackingFd(backingID) // it fails when the mount is gone, and the file with it
		p.used.Add(-1)
	}
}

// Registered is how many files are registered with the kernel now.
func (p *Pool) Registered() int { return int(p.used.Load()) }

// register opens a file and registers it. The kernel keeps the file open
// itself. 0 is no id.
func (p *Pool) register(open func() (*os.File, error)) int32 {
	if p.off.Load() {
		return 0
	}
	if p.used.Add(1) > p.limit {
		p.used.Add(-1)
		return 0
	}
	id, err := p.tryRegister(open)
	if err == nil {
		return id
	}
	p.used.Add(-1)
	if never(err) && !p.off.Swap(true) {
		p.log.Info("the kernel does not read files of the cache by itself here, so they are read through FUSE, at about a quarter of the speed "+
			"(passthrough needs Linux 6.9, CAP_SYS_ADMIN, and a cache on a file system that is not stacked, such as ext4)", "error", err)
	}
	return 0
}

func (p *Pool) tryRegister(open func() (*os.File, error)) (int32, error) {
	f, err := open()
	if err != nil {
		return 0, fs.ErrNotExist
	}
	defer f.Close()
	id, errno := p.kernel.RegisterBackingFd(&fuse.BackingMap{Fd: int32(f.Fd())})
	if errno != 0 {
		return 0, errno
	}
	return id, nil
}

// never reports whether an error says that no file can be registered, ever: an
// old kernel, missing rights, a cache on a stacked file system.
func never(err error) bool {
	for _, e := range []syscall.Errno{syscall.EPERM, syscall.ENOSYS, syscall.ENOTTY, syscall.EOPNOTSUPP, syscall.EINVAL, syscall.ELOOP} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
