package tree

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	erofs "github.com/erofs/go-erofs"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// fuzzNames are the components that the first values of a byte stand for; the
// others take bytes from the input.
var fuzzNames = []string{
	"a", "b", "c", "..", ".", "", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh.", ".wh..wh.x", "\xff", "a\nb", "a\x00",
	".prefetch.landmark", strings.Repeat("n", 255), strings.Repeat("n", 256),
}

// fuzzInput reads a stack of layers out of bytes.
type fuzzInput struct{ b []byte }

func (in *fuzzInput) byte() byte {
	if len(in.b) == 0 {
		return 0
	}
	c := in.b[0]
	in.b = in.b[1:]
	return c
}

func (in *fuzzInput) bytes(n int) []byte {
	n = min(n, len(in.b))
	out := in.b[:n]
	in.b = in.b[n:]
	return out
}

func (in *fuzzInput) path() string {
	var parts []string
	for range 1 + in.byte()%5 {
		if c := int(in.byte()); c%32 < len(fuzzNames) {
			parts = append(parts, fuzzNames[c%32])
		} else {
			parts = append(parts, string(in.bytes(c%32)))
		}
	}
	return strings.Join(parts, "/")
}

func (in *fuzzInput) layers() [][]layer.Entry {
	var layers [][]layer.Entry
	var entries []layer.Entry
	for len(in.b) > 0 {
		op := in.byte()
		if op == 255 {
			layers = append(layers, entries)
			entries = nil
			continue
		}
		e := layer.Entry{Name: in.path(), Type: layer.Type(op % 9), Mode: uint32(in.byte())<<4 | uint32(op>>4), UID: uint32(in.byte()) << 24, GID: uint32(in.byte())}
		e.ModTime = time.Unix(int64(int8(in.byte()))<<30, int64(in.byte()))
		switch e.Type {
		case layer.Reg:
			e.Size = int64(int8(in.byte())) << (in.byte() % 64)
			copy(e.Key[:], in.bytes(9))
		case layer.Symlink, layer.Hardlink:
			e.LinkName = in.path()
		case layer.Char, layer.Block:
			e.Major, e.Minor = uint32(in.byte()), uint32(in.byte())<<20
		}
		for range in.byte() % 4 {
			names := []string{"user.x", "user.y", "security.z", xattrCapability, xattrACL, xattrDefaultACL, "trusted.overlay.opaque", "user.", ""}
			e.Xattrs = append(e.Xattrs, layer.Xattr{Name: names[int(in.byte())%len(names)], Value: in.bytes(int(in.byte()))})
		}
		entries = append(entries, e)
	}
	return append(layers, entries)
}

// FuzzBuild builds images of arbitrary layers: they are refused in the way that is
// promised, or give the same image twice, which another implementation can read.
func FuzzBuild(f *testing.F) {
	f.Add([]byte{}, false)
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x00\x02\x01\x00\x01\x00\x00\x00\x00\x01\x04abcdefghi\x01\x00\x05value\xff\x03\x00\x02\x00\x00\x00\x00\x00\x01\x00\x06\x00"), false)
	f.Add([]byte("\x02\x00\x06\x00\x00\x00\x00\x00\x00\x00\x00\xff\x04\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x01\x01\x08"), true)
	f.Fuzz(func(t *testing.T, input []byte, below bool) {
		in := fuzzInput{input}
		layers := in.layers()
		var image, again memory
		opts := onSomething(below)
		stats, err := Build(context.Background(), &image, layers, opts)
		if err != nil {
			var refused *RefusedError
			if !errors.As(err, &refused) || refused.Layer >= len(layers) || len(image.b) > 0 {
				t.Fatalf("%v, %d bytes written", err, len(image.b))
			}
			return
		}
		if _, err := Build(context.Background(), &again, layers, opts); err != nil || !bytes.Equal(image.b, again.b) {
			t.Fatalf("second image differs: %v", err)
		}
		if int64(len(image.b)) != stats.Bytes {
			t.Errorf("%d bytes, not %d", len(image.b), stats.Bytes)
		}
		checkReadable(t, image.b, stats)
	})
}

// checkReadable walks an image by go-erofs.
func checkReadable(t *testing.T, image []byte, stats Stats) {
	t.Helper()
	img, err := erofs.Open(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	names := int64(0)
	inodes := make(map[int64]int) // by number: names seen; directories have their own count
	links := make(map[int64]int)
	err = fs.WalkDir(img, ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			if !fs.ValidPath(p) {
				return nil // package fs wants UTF-8
			}
			return err
		}
		names++
		info, err := e.Info()
		if err != nil {
			return err
		}
		s := info.Sys().(*erofs.Stat)
		inodes[s.Ino]++
		if !e.IsDir() {
			links[s.Ino] = s.Nlink
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if names > stats.Names || int64(len(inodes)) > stats.Inodes {
		t.Errorf("%d names and %d inodes, Stats says %+v", names, len(inodes), stats)
	}
	for ino, n := range links {
		if names == stats.Names && inodes[ino] != n {
			t.Errorf("inode %d has %d names and %d links", ino, inodes[ino], n)
		}
	}
}
