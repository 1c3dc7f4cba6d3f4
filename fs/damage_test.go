package fs_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDamagedState checks that what was damaged while the daemon was down is
// told of and gone, and blocks nothing else.
func TestDamagedState(t *testing.T) { inModes(t, damagedState) }

func damagedState(t *testing.T, mode string) {
	s := store{mode: mode}
	tocs := map[string]string{}
	root := t.TempDir()
	f := start(t, root, &s)
	for _, cid := range []string{"good", "bad", "worse", "worst"} {
		tocs[cid] = s.add(t, cid, file{name: cid, body: cid})
		add(t, f, cid, tocs[cid])
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	layers := filepath.Join(root, "layers")
	entries, err := os.ReadDir(filepath.Join(layers, "bad"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		if err := os.Truncate(filepath.Join(layers, "bad", e.Name()), 10); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(layers, "worse", "layer.json"), []byte("{"), 0o600),
		os.RemoveAll(filepath.Join(layers, "worst")), os.WriteFile(filepath.Join(layers, "worst"), nil, 0o600),
		os.Mkdir(filepath.Join(layers, "tmp-1"), 0o700),
	); err != nil {
		t.Fatal(err)
	}
	f = running(t, root, &s)
	left, err := os.ReadDir(layers)
	if err != nil || len(left) != 1 || left[0].Name() != "good" {
		t.Errorf("left: %v, %v", left, err)
	}
	for cid, toc := range tocs {
		add(t, f, cid, toc)
		dir, umount := overlay(t, f, cid)
		mustRead(t, filepath.Join(dir, cid), cid)
		umount()
	}
}

// TestDamagedLayer checks that a layer whose bytes are not what its table of
// contents says spoils nothing for another that has the same file.
func TestDamagedLayer(t *testing.T) { inModes(t, damagedLayer) }

func damagedLayer(t *testing.T, mode string) {
	s := store{mode: mode}
	body := random(9, 50_000)
	toc := s.add(t, "honest", file{name: "a", body: body})
	damaged := bytes.Clone(s.blobs["honest"])
	for i := 1000; i < 2000; i++ {
		damaged[i] ^= 0xff // in the file's contents: random bytes do not compress
	}
	s.blobs["damaged"] = damaged
	f := running(t, t.TempDir(), &s)
	add(t, f, "damaged", toc)
	dir, umount := overlay(t, f, "damaged")
	defer umount()
	if _, err := os.ReadFile(dir + "/a"); !errors.Is(err, unix.EIO) {
		t.Errorf("read of a damaged file: %v", err)
	}
	add(t, f, "honest", toc)
	mustRead(t, dir+"/a", body)
}
