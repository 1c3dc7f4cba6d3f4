package erofs_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
	"github.com/ipfs-stargz/ipfs-stargz/fs/tree"
)

// buildImage returns the path of an image of a layer.
func buildImage(t testing.TB, entries ...layer.Entry) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := tree.Build(context.Background(), f, [][]layer.Entry{entries}, tree.Options{}); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func readImage(t testing.TB, entries ...layer.Entry) []byte {
	t.Helper()
	b, err := os.ReadFile(buildImage(t, entries...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func openImage(t testing.TB, entries ...layer.Entry) *erofs.Image {
	t.Helper()
	im, err := erofs.Open(buildImage(t, entries...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	})
	return im
}

// someOfAll has every kind of file, and directories and links of all layouts.
func someOfAll() []layer.Entry {
	at := time.Unix(1700000000, 123456789)
	entries := []layer.Entry{
		{Name: "dir", Type: layer.Dir, Mode: 0o1777, UID: 1, GID: 1 << 31, ModTime: at, Xattrs: []layer.Xattr{{Name: "user.x", Value: []byte("y")}}},
		{Name: "file", Type: layer.Reg, Mode: 0o4755, Size: 5, Key: sha256.Sum256([]byte("12345")), ModTime: at, Xattrs: []layer.Xattr{
			{Name: "security.long", Value: []byte(strings.Repeat("l", 5000))}, {Name: "user.x", Value: []byte("z")},
		}},
		{Name: "again", Type: layer.Hardlink, LinkName: "file", Mode: 0o4755, ModTime: at},
		{Name: "empty", Type: layer.Reg, Mode: 0o600},
		{Name: "huge", Type: layer.Reg, Size: 1 << 42, Key: sha256.Sum256([]byte("huge"))},
		{Name: "link", Type: layer.Symlink, LinkName: "dir/../file"},
		{Name: "long", Type: layer.Symlink, LinkName: strings.Repeat("t", 4095)},
		{Name: "null", Type: layer.Char, Major: 1, Minor: 3, Mode: 0o666},
		{Name: "disk", Type: layer.Block, Major: 259, Minor: 300},
		{Name: "fifo", Type: layer.Fifo, Mode: 0o622},
	}
	for i := range 500 {
		entries = append(entries, layer.Entry{Name: fmt.Sprintf("dir/%0*d", 1+i%200, i), Type: layer.Fifo})
	}
	return entries
}
