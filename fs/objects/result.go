package objects

import (
	"fmt"
	"os"
	"strconv"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// result is the answer to a read, which goes to the kernel from where it lies.
type result struct{ lent Lent }

// Bytes implements [fuse.ReadResult].
func (r *result) Bytes([]byte) ([]byte, fuse.Status) { return r.lent.Bytes(), fuse.OK }

// Slices has go-fuse write at once; for a result without it it tries splice
// first, for nothing.
func (r *result) Slices() ([][]byte, fuse.Status) { return [][]byte{r.lent.Bytes()}, fuse.OK }

// Size implements [fuse.ReadResult].
func (r *result) Size() int { return len(r.lent.Bytes()) }

// Done implements [fuse.ReadResult].
func (r *result) Done() { r.lent.Release() }

// setReadAhead sets how far the kernel reads ahead on the file system at dir,
// which FUSE itself bounds to 128 KiB.
func setReadAhead(dir string, bytes int) error {
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		return err
	}
	path := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	return os.WriteFile(path, []byte(strconv.Itoa(bytes>>10)), 0)
}
