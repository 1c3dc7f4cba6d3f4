package erofs_test

import (
	"errors"
	"math"
	"testing"

	"github.com/ipfs-stargz/ipfs-stargz/fs/erofs"
	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// FuzzImage reads arbitrary images: each method returns, with an error that says
// so where an image is none, and never more than there is.
func FuzzImage(f *testing.F) {
	f.Add(readImage(f))
	f.Add(readImage(f, layer.Entry{Name: "a", Type: layer.Symlink, LinkName: "b"}, layer.Entry{Name: "d/e/f", Type: layer.Reg, Size: 1, Key: layer.Key{1}}))
	f.Add(readImage(f, someOfAll()...))
	f.Fuzz(func(t *testing.T, b []byte) {
		im, err := erofs.New(b)
		if err != nil {
			if !errors.Is(err, erofs.ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		check := func(err error) {
			if err != nil && !errors.Is(err, erofs.ErrDamaged) {
				t.Fatal(err)
			}
		}
		check(im.Verify())
		var in erofs.Inode
		visit := func(nid uint64) {
			if err := im.Inode(nid, &in); err != nil {
				check(err)
				return
			}
			_, _, err := im.Key(&in)
			check(err)
			target, err := im.Readlink(&in)
			check(err)
			if len(target) > 4096 {
				t.Fatalf("target of %d bytes", len(target))
			}
			names := 0
			check(im.Dirents(&in, 0, func(e erofs.Dirent) bool {
				if names++; e.Name == "" || len(e.Name) > 255 || names > len(b)/12 {
					t.Fatalf("name %d: %q", names, e.Name)
				}
				_, _, _, err := im.Lookup(&in, e.Name)
				check(err)
				return names < 1000
			}))
			check(im.Dirents(&in, math.MaxInt64, func(erofs.Dirent) bool { return false }))
			_, _, _, err = im.Lookup(&in, "m")
			check(err)
		}
		visit(im.Root())
		for nid := uint64(0); nid < uint64(len(b))/erofs.NidSize && nid < 1000; nid++ {
			visit(nid)
		}
		count := 0
		check(im.Inodes(func(*erofs.Inode) bool { count++; return true }))
		if count > len(b)/erofs.InodeSize {
			t.Fatalf("%d inodes in %d bytes", count, len(b))
		}
	})
}
