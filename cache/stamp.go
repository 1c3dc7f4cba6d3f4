package cache

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// stamp is the modification time of a genuine object's file, in seconds of Unix
// time: a hash of its key and size, in the years 1970 to 2004. Nobody who writes
// to the file, cuts it, or puts another in its place leaves it that time, but
// for who means to. (Containers do not see it: their files' times are those in
// the tree.)
func stamp(k Key, size int64) int64 {
	h := sha256.Sum256(binary.BigEndian.AppendUint64(k[:], uint64(size)))
	return int64(binary.BigEndian.Uint32(h[:]) >> 2)
}

// stampFile makes the file at path, which nobody has open for writing, look like
// the object k. It is the last that happens to a file before it is an object.
func stampFile(path string, k Key) (st unix.Stat_t, err error) {
	if err := os.Chmod(path, 0o444); err != nil {
		return st, err
	}
	if err := unix.Lstat(path, &st); err != nil {
		return st, fmt.Errorf("stat %s: %w", path, err)
	}
	return st, os.Chtimes(path, time.Time{}, time.Unix(stamp(k, st.Size), 0))
}

// genuine reports whether a file is as it was when it became the object k, as
// far as that can be told from outside.
func genuine(k Key, st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFREG && st.Mtim == unix.NsecToTimespec(stamp(k, st.Size)*int64(time.Second))
}
