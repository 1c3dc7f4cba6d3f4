package disktest_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ipfs-stargz/ipfs-stargz/cache/disktest"
)

// TestMount fills a disk, and checks that nothing is left of it.
func TestMount(t *testing.T) {
	var dir string
	t.Run("full", func(t *testing.T) {
		dir = disktest.Mount(t, 16<<20)
		err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 32<<20), 0o600)
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("32 MiB on a disk of 16: %v", err)
		}
	})
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(mounts, []byte(" "+dir+" ")) {
		t.Errorf("%s is mounted still", dir)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left", dir)
	}
}
