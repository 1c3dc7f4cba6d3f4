package durable

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	write := func(text string, fail error) error {
		return Write(path, func(f *os.File) error {
			_, err := f.WriteString(text)
			return errors.Join(err, fail)
		})
	}
	want := func(text string) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil || string(b) != text {
			t.Errorf("got %q, %v; want %q", b, err, text)
		}
		if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
			t.Errorf("in the directory: %v, %v", names, err)
		}
	}
	for _, text := range []string{"first", "second"} {
		if err := write(text, nil); err != nil {
			t.Fatal(err)
		}
		want(text)
	}
	failed := errors.New("failed")
	if err := write("third", failed); !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
	want("second")

	// A directory of that name cannot be replaced.
	if err := Write(dir, func(*os.File) error { return nil }); err == nil {
		t.Error("replaced a directory")
	}
	if err := Write(filepath.Join(dir, "none", "file"), func(*os.File) error { return nil }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("in no directory: %v", err)
	}
	if err := SyncDir(path + "-none"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("sync no directory: %v", err)
	}
}
