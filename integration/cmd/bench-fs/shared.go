package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/benchout"
)

// shared reads two images through that have the same files, and counts the
// pages of memory that hold them, wherever they are: behind the files of either
// image, and behind what the daemon keeps.
func shared(ctx context.Context, b *bench) error {
	if _, err := b.startDaemons(ctx, ""); err != nil {
		return err
	}
	big, all := b.sizes.sharedBig, b.sizes.sharedBig+b.sizes.sharedTiny
	var paths []string
	for number := range 2 {
		p, err := b.pull(ctx, twin(number, big, b.sizes.sharedTiny))
		if err != nil {
			return err
		}
		r, _, err := b.prepare(ctx, lazy, p.cid)
		if err != nil {
			return err
		}
		for i := range all {
			paths = append(paths, filepath.Join(r.dir, twinName(number, i)))
		}
		if err := b.same(paths[number*all], twinContents(0, big)); err != nil {
			return err
		}
	}
	buf := make([]byte, mib)
	if _, err := readFiles(ctx, paths, buf); err != nil {
		return err
	}
	// All of it is here now; what came in on the way goes.
	if err := dropCaches(dropAll); err != nil {
		return err
	}
	if _, err := readFiles(ctx, paths, buf); err != nil {
		return err
	}
	objects, err := filepath.Glob(filepath.Join(b.node.DaemonRoot(), "cache", "objects", "*"))
	if err != nil {
		return err
	}
	frames, err := countFrames(append(paths, objects...))
	if err != nil {
		return err
	}
	page := int64(os.Getpagesize())
	var pages int64
	for i := range all {
		pages += (twinContents(i, big).size + page - 1) / page
	}
	return b.add(benchout.Figure{
		Name: "page-cache-of-two-images", Value: float64(frames), Unit: "pages",
		Reference: "one image's files", ReferenceValue: float64(pages), Bar: benchout.AtMost(1.05),
	})
}

// countFrames counts the page frames that hold pages of files: one that several
// files have in common counts once.
func countFrames(paths []string) (int, error) {
	pagemap, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return 0, err
	}
	defer pagemap.Close()
	seen := map[uint64]bool{}
	for _, p := range paths {
		if err := frames(pagemap, p, seen); err != nil {
			return 0, fmt.Errorf("pages of %s: %w", p, err)
		}
	}
	return len(seen), nil
}

// frames adds to seen the page frames of a file that are in memory.
func frames(pagemap *os.File, path string, seen map[uint64]bool) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() == 0 || !st.Mode().IsRegular() {
		return err
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Munmap(data)) }()
	page := os.Getpagesize()
	resident := make([]byte, (len(data)+page-1)/page)
	begin := uintptr(unsafe.Pointer(&data[0]))
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, begin, uintptr(len(data)), uintptr(unsafe.Pointer(&resident[0])))
	if errno != 0 {
		return errno
	}
	for i, r := range resident {
		if r&1 != 0 {
			// Map it, so that it has an entry below.
			if err := unix.Madvise(data[i*page:min((i+1)*page, len(data))], unix.MADV_POPULATE_READ); err != nil {
				return fmt.Errorf("madvise: %w", err)
			}
		}
	}
	entries := make([]byte, 8*len(resident))
	if _, err := pagemap.ReadAt(entries, 8*int64(begin)/int64(page)); err != nil {
		return err
	}
	for i, r := range resident {
		const present, number = 1 << 63, 1<<55 - 1
		e := binary.NativeEndian.Uint64(entries[8*i:])
		switch {
		case r&1 == 0:
		case e&present == 0:
			return fmt.Errorf("page %d went while it was looked at", i)
		case e&number == 0:
			return errors.New("the kernel does not tell page frames (CAP_SYS_ADMIN)")
		default:
			seen[e&number] = true
		}
	}
	return nil
}
