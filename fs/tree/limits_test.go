package tree

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

var t0 = time.Unix(1700000000, 123456789)

// Each limit, at it and one beyond.
func TestLimits(t *testing.T) {
	lowKey := func(id uint64) (k layer.Key) {
		binary.BigEndian.PutUint64(k[:], id)
		return k
	}
	object := func(name string, size int64, k layer.Key) layer.Entry {
		return layer.Entry{Name: name, Type: layer.Reg, Size: size, Key: k}
	}
	other := lowKey(1 << 60)
	other[31] = 1
	xattrs := func(x ...layer.Xattr) layer.Entry { return layer.Entry{Name: "a", Type: layer.Reg, Xattrs: x} }
	value := func(name string, n int) layer.Xattr { return layer.Xattr{Name: name, Value: make([]byte, n)} }
	link := func(target string) layer.Entry { return layer.Entry{Name: "a", Type: layer.Symlink, LinkName: target} }
	name := func(s string) layer.Entry { return layer.Entry{Name: s, Type: layer.Reg} }
	half := strings.Repeat("d/", maxDepth/2)

	for _, c := range []struct {
		what    string
		entries []layer.Entry
		err     error
	}{
		{"name of 255 bytes", []layer.Entry{name(strings.Repeat("n", 255))}, nil},
		{"name of 256 bytes", []layer.Entry{name(strings.Repeat("n", 256))}, ErrLimit},
		{"directory name of 256 bytes", []layer.Entry{name(strings.Repeat("n", 256) + "/a")}, ErrLimit},
		{"name of 256 bytes by way of a link", []layer.Entry{{Name: "l", Type: layer.Symlink, LinkName: strings.Repeat("n", 256)}, name("l/a")}, ErrLimit},
		{"depth of 4096", []layer.Entry{name(strings.Repeat("d/", 4095) + "f")}, nil},
		{"depth of 4097", []layer.Entry{name(strings.Repeat("d/", 4096) + "f")}, ErrLimit},
		{"depth by way of a link", []layer.Entry{name(half + "x"), {Name: half + "l", Type: layer.Symlink, LinkName: "/" + half[:2*(maxDepth/2-2)]}, {Name: half + "l/b", Type: layer.Symlink, LinkName: half}, name(strings.Repeat("d/", maxDepth-4) + "b/x/y")}, ErrLimit},
		{"empty name part", []layer.Entry{name("a//b")}, ErrEntry},
		{"absolute name", []layer.Entry{name("/a")}, ErrEntry},
		{"name that ends in a slash", []layer.Entry{name("a/")}, ErrEntry},
		{"dot", []layer.Entry{name("a/./b")}, ErrEntry},
		{"dot dot", []layer.Entry{name("a/..")}, ErrEntry},
		{"NUL", []layer.Entry{name("a\x00b")}, ErrEntry},
		{"no type", []layer.Entry{{Name: "a"}}, ErrEntry},
		{"unknown type", []layer.Entry{{Name: "a", Type: layer.Fifo + 1}}, ErrEntry},
		{"empty target", []layer.Entry{link("")}, ErrEntry},
		{"NUL in a target", []layer.Entry{link("a\x00")}, ErrEntry},
		{"target of 4095 bytes", []layer.Entry{link(strings.Repeat("t", 4095))}, nil},
		{"target of 4096 bytes", []layer.Entry{link(strings.Repeat("t", 4096))}, ErrLimit},
		{"file of 8 TiB", []layer.Entry{object("a", 1<<43, key("a"))}, nil},
		{"larger file", []layer.Entry{object("a", 1<<43+1, key("a"))}, ErrLimit},
		{"negative size", []layer.Entry{object("a", -1, key("a"))}, ErrEntry},
		{"least key", []layer.Entry{object("a", 1, lowKey(1024))}, nil},
		{"reserved key", []layer.Entry{object("a", 1, lowKey(1023))}, ErrKey},
		{"no key", []layer.Entry{object("a", 1, layer.Key{})}, ErrKey},
		{"no key and no contents", []layer.Entry{object("a", 0, layer.Key{})}, nil},
		{"same key twice", []layer.Entry{object("a", 1, lowKey(1<<60)), object("b", 1, lowKey(1<<60))}, nil},
		{"keys that begin alike", []layer.Entry{object("a", 1, lowKey(1<<60)), object("b", 1, other)}, ErrKey},
		{"attributes of 64 KiB", []layer.Entry{xattrs(value("user.a", 60000), value("user.b", 65536-60000-12))}, nil},
		{"larger attributes", []layer.Entry{xattrs(value("user.a", 60000), value("user.b", 65536-60000-11))}, ErrLimit},
		{"largest attribute", []layer.Entry{xattrs(value("user.a", 65530))}, nil},
		{"larger attribute", []layer.Entry{xattrs(value("user.a", 65536))}, ErrLimit},
		{"attributes in two entries", []layer.Entry{{Name: "a", Type: layer.Dir, Xattrs: []layer.Xattr{value("user.a", 40000)}}, {Name: "a", Type: layer.Dir, Xattrs: []layer.Xattr{value("user.b", 40000)}}}, ErrLimit},
		{"attribute without a name", []layer.Entry{xattrs(value("", 1))}, ErrXattr},
		{"attribute with a namespace only", []layer.Entry{xattrs(value("user.", 1))}, ErrXattr},
		{"attribute name of 255 bytes", []layer.Entry{xattrs(value("user."+strings.Repeat("n", 250), 1))}, nil},
		{"attribute name of 256 bytes", []layer.Entry{xattrs(value("user."+strings.Repeat("n", 251), 1))}, ErrXattr},
		{"NUL in an attribute name", []layer.Entry{xattrs(value("user.\x00", 1))}, ErrXattr},
		{"short capability", []layer.Entry{xattrs(value(xattrCapability, 3))}, ErrXattr},
		{"capability of version 1", []layer.Entry{xattrs(layer.Xattr{Name: xattrCapability, Value: append([]byte{0, 0, 0, 1}, make([]byte, 8)...)})}, ErrXattr},
		{"capability of version 3", []layer.Entry{xattrs(layer.Xattr{Name: xattrCapability, Value: append([]byte{0, 0, 0, 3}, make([]byte, 20)...)})}, nil},
		{"ACL that is none", []layer.Entry{xattrs(layer.Xattr{Name: xattrACL, Value: []byte{2, 0, 0, 0, 1}})}, ErrXattr},
		{"ACL without entries", []layer.Entry{xattrs(layer.Xattr{Name: xattrACL, Value: makeACL()})}, nil},
		{"ACL without a mask", []layer.Entry{xattrs(layer.Xattr{Name: xattrACL, Value: makeACL(aclLine{1, 7, noID}, aclLine{2, 7, 1}, aclLine{4, 7, noID}, aclLine{32, 7, noID})})}, ErrXattr},
		{"large ACL", []layer.Entry{xattrs(layer.Xattr{Name: xattrACL, Value: largeACL(9000)})}, ErrXattr},
		{"default ACL of a file", []layer.Entry{xattrs(layer.Xattr{Name: xattrDefaultACL, Value: largeACL(1)})}, ErrXattr},
		{"255 symbolic links", linkChain(255), nil},
		{"257 symbolic links", linkChain(257), ErrParent},
	} {
		t.Run(c.what, func(t *testing.T) {
			var m memory
			_, err := Build(context.Background(), &m, [][]layer.Entry{c.entries}, Options{})
			var refused *RefusedError
			if !errors.Is(err, c.err) || c.err != nil && !errors.As(err, &refused) {
				t.Fatalf("got %v, want %v", err, c.err)
			}
			if c.err != nil && len(m.b) > 0 {
				t.Errorf("%d bytes written", len(m.b))
			}
		})
	}
}

// TestManyImplicitDirectories has short entries ask for many directories.
func TestManyImplicitDirectories(t *testing.T) {
	var entries []layer.Entry
	for i := range maxImplicit / (maxDepth - 1) {
		entries = append(entries, layer.Entry{Name: fmt.Sprint(i, strings.Repeat("/d", maxDepth-2), "/f"), Type: layer.Reg})
	}
	if err := refusal(context.Background(), [][]layer.Entry{entries}); err != nil {
		t.Fatal(err)
	}
	more := []layer.Entry{{Name: "more" + strings.Repeat("/d", maxDepth-2) + "/f", Type: layer.Reg}}
	if err := refusal(context.Background(), [][]layer.Entry{entries, more}); !errors.Is(err, ErrLimit) {
		t.Error(err)
	}
}

// TestManyInheritedACLs has short entries ask for much memory.
func TestManyInheritedACLs(t *testing.T) {
	acl := largeACL(8000)
	entries := []layer.Entry{{Name: "d", Type: layer.Dir, Xattrs: []layer.Xattr{{Name: xattrDefaultACL, Value: acl}}}}
	for i := range maxInherited / len(acl) {
		entries = append(entries, layer.Entry{Name: fmt.Sprint("d/", i), Type: layer.Reg})
	}
	if err := refusal(context.Background(), [][]layer.Entry{entries}); err != nil {
		t.Fatal(err)
	}
	entries = append(entries, layer.Entry{Name: "d/more", Type: layer.Reg})
	if err := refusal(context.Background(), [][]layer.Entry{entries}); !errors.Is(err, ErrLimit) {
		t.Error(err)
	}
}

// linkChain makes a file below the last of a chain of links.
func linkChain(n int) []layer.Entry {
	entries := []layer.Entry{{Name: "l0", Type: layer.Dir}}
	for i := range n {
		entries = append(entries, layer.Entry{Name: fmt.Sprint("l", i+1), Type: layer.Symlink, LinkName: fmt.Sprint("l", i)})
	}
	return append(entries, layer.Entry{Name: fmt.Sprintf("l%d/file", n), Type: layer.Reg})
}

func largeACL(named int) []byte {
	lines := []aclLine{{aclUserObj, 7, noID}}
	for i := range named {
		lines = append(lines, aclLine{aclUser, 7, uint32(i)})
	}
	return makeACL(append(lines, aclLine{aclGroupObj, 7, noID}, aclLine{aclMask, 7, noID}, aclLine{aclOther, 7, noID})...)
}

// Layers that ask for much work by few entries are refused before it takes long.
func TestHostileWork(t *testing.T) {
	t.Run("links", func(t *testing.T) {
		// Each entry leads through 250 links, each of them up and down 800 times.
		long := strings.Repeat("../a/", 800)
		entries := []layer.Entry{{Name: "a", Type: layer.Dir}}
		for i := range 250 {
			entries = append(entries, layer.Entry{Name: fmt.Sprint("a/l", i), Type: layer.Symlink, LinkName: fmt.Sprint(long, "l", i+1)})
		}
		entries = append(entries, layer.Entry{Name: "a/l250", Type: layer.Dir})
		for i := range 100000 {
			entries = append(entries, layer.Entry{Name: fmt.Sprint("a/l0/f", i), Type: layer.Reg})
		}
		err := refusal(context.Background(), [][]layer.Entry{entries})
		if !errors.Is(err, ErrLimit) {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		var refused *RefusedError
		if err := refusal(ctx, [][]layer.Entry{entries}); !errors.Is(err, context.DeadlineExceeded) || errors.As(err, &refused) {
			t.Error(err)
		}
	})
	t.Run("directories without entries", func(t *testing.T) {
		// Each has to be looked for in every layer below.
		deep := strings.Repeat("d/", 4000)
		layers := make([][]layer.Entry, 30)
		for i := range layers {
			layers[i] = []layer.Entry{{Name: deep + "f", Type: layer.Reg}}
		}
		if err := refusal(context.Background(), layers); !errors.Is(err, ErrLimit) {
			t.Error(err)
		}
	})
}

// TestInputIsNotModified checks that a caller can go on with what it gave.
func TestInputIsNotModified(t *testing.T) {
	acl := makeACL(aclLine{aclUserObj, 7, noID}, aclLine{aclUser, 7, 1}, aclLine{aclGroupObj, 7, noID}, aclLine{aclMask, 7, noID}, aclLine{aclOther, 7, noID})
	stack := [][]file{{
		dir("d", 0o700).xattr(xattrDefaultACL, acl).xattr(xattrACL, acl), reg("d/a", "1").xattr("user.x", []byte("1")).xattr("trusted.x", []byte("2")),
		hardlink("b", "d/a").xattr("user.x", []byte("3")).xattr(xattrACL, acl),
	}}
	layers := layersOf(stack)
	before := fmt.Sprintf("%+v", layers)
	var m memory
	if _, err := Build(context.Background(), &m, layers, Options{}); err != nil {
		t.Fatal(err)
	}
	if after := fmt.Sprintf("%+v", layers); after != before {
		t.Errorf("before %s\nafter  %s", before, after)
	}
	if !bytes.Equal(acl, makeACL(aclLine{aclUserObj, 7, noID}, aclLine{aclUser, 7, 1}, aclLine{aclGroupObj, 7, noID}, aclLine{aclMask, 7, noID}, aclLine{aclOther, 7, noID})) {
		t.Error("an attribute's value was changed")
	}
}
