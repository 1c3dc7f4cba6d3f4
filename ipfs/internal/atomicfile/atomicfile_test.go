package atomicfile_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/atomicfile"
)

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, text := range []string{"first, and longer", "second"} {
		if err := atomicfile.Write(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != text {
			t.Errorf("read %q, %v", b, err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := atomicfile.Write(filepath.Join(dir, "none", "f"), nil, 0o600); err == nil {
		t.Error("no error for a directory that is not there")
	}
	if err := atomicfile.Write(dir, []byte("x"), 0o600); err == nil {
		t.Error("no error for a directory in the way")
	}
	if names, err := filepath.Glob(filepath.Join(dir, "*.new")); err != nil || len(names) > 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}
