package estargz

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/ipfs-stargz/ipfs-stargz/fs/layer"
)

// names are those of a layer's tar, in order.
func names(t testing.TB, plain []byte) (all []string) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(plain)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h.Name)
	}
}

// inOrder is the tar of an eStargz of plain, with the files in put first. It is
// not compressed, which takes most of a conversion's time.
func inOrder(t testing.TB, plain []byte, put []string) ([]byte, error) {
	t.Helper()
	var contents, b bytes.Buffer
	n := newNormalizer(&contents)
	if err := n.copy(bytes.NewReader(plain)); err != nil {
		return nil, err
	}
	w := tar.NewWriter(&b)
	entries, _ := n.ordered(put)
	for _, e := range entries {
		if err := w.WriteHeader(e.header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(contents.Bytes()[e.contents:][:e.header.Size]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), nil
}

// TestPrioritized checks the order of a layer whose first files are given.
func TestPrioritized(t *testing.T) {
	link := file{Header: tar.Header{Typeflag: tar.TypeLink, Name: "x/link", Linkname: "y/target"}}
	files := []file{dir("x"), dir("y"), reg("a", []byte("a")), reg("y/target", []byte("t")), link, reg("implicit/b", []byte("b")), reg("z", []byte("old")), reg("z", []byte("new"))}
	blob, r := result(t, makeTar(t, files), Options{Prioritized: []string{"/z", "x/link", "none", "./implicit/b"}})
	if want := []string{"none"}; !slices.Equal(r.Missed, want) {
		t.Errorf("missed %q, want %q", r.Missed, want)
	}
	want := []string{"z", "x/", "y/", "y/target", "x/link", "implicit/b", estargz.PrefetchLandmark, "a", estargz.TOCTarName}
	if got := names(t, gunzip(t, blob)); !slices.Equal(got, want) {
		t.Errorf("order %q, want %q", got, want)
	}
	toc, err := layer.ReadTOC(context.Background(), source(blob), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range toc.Objects {
		first := o.Chunks[0].BlobOffset < toc.PrefetchSize
		if last := o.Key == toc.Entries[6].Key; first == last {
			t.Errorf("object %x before the landmark: %v", o.Key[:4], first)
		}
	}
}

// TestNothingPrioritized has a list of which the layer has nothing: its landmark
// must not claim that something comes first.
func TestNothingPrioritized(t *testing.T) {
	plain := makeTar(t, []file{reg("a", []byte("a")), reg("b", []byte("b"))})
	want := made(t, plain, Options{})
	if got := made(t, plain, Options{Prioritized: []string{"none"}}); !bytes.Equal(got, want) {
		t.Error("other bytes than without a list")
	}
	if got := names(t, gunzip(t, want)); got[0] != estargz.NoPrefetchLandmark {
		t.Errorf("order %q", got)
	}
}

// TestFrontComesWithWhatItNeeds names, for one file that is put first, what
// comes before it and what stays behind.
func TestFrontComesWithWhatItNeeds(t *testing.T) {
	link := func(name, to string) file {
		return file{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}}
	}
	for name, c := range map[string]struct {
		files []file
		put   string
		first []string
	}{
		"a directory's attributes":       {[]file{dir("d"), reg("o", nil), reg("d/f", nil)}, "d/f", []string{"d/", "d/f"}},
		"attributes that come later":     {[]file{reg("d/f", nil), dir("d"), reg("d/g", nil)}, "d/f", []string{"d/f"}},
		"attributes in between":          {[]file{reg("d/f", nil), dir("d"), reg("d/g", nil)}, "d/g", []string{"d/f", "d/", "d/g"}},
		"all earlier names of an inode":  {[]file{reg("a", nil), link("b", "a"), link("c", "b"), link("d", "a")}, "c", []string{"a", "b", "c"}},
		"deleted and made again":         {[]file{reg(".wh.d", nil), reg("o", nil), dir("d"), reg("d/f", nil)}, "d/f", []string{".wh.d", "d/", "d/f"}},
		"made, deleted, made again":      {[]file{reg("d/e", nil), reg(".wh.d", nil), reg("d/f", nil)}, "d/f", []string{"d/e", ".wh.d", "d/f"}},
		"deleted later":                  {[]file{reg("o", nil), reg("f", nil), reg(".wh.f", nil)}, "f", []string{"f"}},
		"opaque":                         {[]file{dir("d"), reg("d/.wh..wh..opq", nil), reg("o", nil), reg("d/s/f", nil)}, "d/s/f", []string{"d/", "d/.wh..wh..opq", "d/s/f"}},
		"another's deletion stays where": {[]file{reg("d/.wh.x", nil), reg("d/f", nil)}, "d/f", []string{"d/f"}},
		"the root":                       {[]file{dir("./"), reg("f", nil)}, "f", []string{"f"}},
	} {
		made, err := inOrder(t, makeTar(t, c.files), []string{c.put})
		if err != nil {
			t.Fatal(err)
		}
		got := names(t, made)
		if i := slices.Index(got, estargz.PrefetchLandmark); i < 0 || !slices.Equal(got[:i], c.first) {
			t.Errorf("%s: %q, first should be %q", name, got, c.first)
		}
	}
}

// someEntries makes a random layer out of few names, so that its entries have
// to do with each other.
func someEntries(r *rand.Rand) []file {
	// Mostly a is a directory and c is none, else few layers could be converted.
	name := func(last string) string {
		var s string
		for range r.IntN(3) {
			s += "aaab"[r.IntN(4):][:1] + "/"
		}
		return s + last[r.IntN(len(last)):][:1]
	}
	// Hands on rights to what is made in it: user::rwx, group::r-x, other::---.
	acl := "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x04\x00\x05\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
	var files []file
	var linkable []string
	for i := range 4 + r.IntN(20) {
		h := tar.Header{
			Typeflag: tar.TypeReg, Name: name("bccccd"), Mode: int64(0o600 + r.IntN(0o100)),
			Uid: r.IntN(3), ModTime: time.Unix(int64(1_000_000+i), 0),
		}
		var data []byte
		switch r.IntN(9) {
		case 0, 1:
			h.Name = name("aaab")
			h.Typeflag, h.Mode = tar.TypeDir, 0o755|int64(r.IntN(2))<<10
			if r.IntN(3) == 0 {
				h.PAXRecords = map[string]string{"SCHILY.xattr.system.posix_acl_default": acl}
			}
		case 2:
			h.Typeflag, h.Linkname = tar.TypeSymlink, name("abc")
		case 3:
			if len(linkable) == 0 {
				continue
			}
			h.Typeflag, h.Linkname = tar.TypeLink, linkable[r.IntN(len(linkable))]
		case 4:
			h.Name = parent(h.Name) + "/.wh." + name("abcd")[:1]
		case 5:
			h.Name = parent(h.Name) + "/.wh..wh..opq"
		default:
			data = fmt.Appendf(nil, "file %d", i)
			h.Size = int64(len(data))
			linkable = append(linkable, h.Name)
		}
		files = append(files, file{h, data})
	}
	return files
}

// TestAnyOrderUnpacksTheSame puts random files of random layers first, and
// unpacks the layers as containerd does: onto other files, and as an overlay's
// layer.
func TestAnyOrderUnpacksTheSame(t *testing.T) {
	layers := 0
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 3))
		files := someEntries(r)
		plain := makeTar(t, files)
		want, err := inOrder(t, plain, nil)
		if errors.Is(err, ErrNotConvertible) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		var put []string
		for range 1 + r.IntN(4) {
			put = append(put, files[r.IntN(len(files))].Name)
		}
		reordered, err := inOrder(t, plain, put)
		if err != nil {
			t.Fatal(err)
		}
		below := makeTar(t, []file{reg("a/a/a", []byte("below")), reg("a/b", []byte("below")), reg("b/a/b", []byte("below")), reg("c", []byte("below"))})
		layers++
		for how, o := range map[string]archive.ApplyOpt{
			"onto files":    archive.WithFilter(func(*tar.Header) (bool, error) { return true, nil }),
			"as an overlay": archive.WithConvertWhiteout(archive.OverlayConvertWhiteout),
		} {
			var trees [2]map[string]inode
			var refusal [2]error
			for i, b := range [][]byte{want, reordered} {
				root := t.TempDir()
				if how == "onto files" {
					if _, err := archive.Apply(context.Background(), root, bytes.NewReader(below)); err != nil {
						t.Fatal(err)
					}
				}
				_, refusal[i] = archive.Apply(context.Background(), root, bytes.NewReader(b), o)
				trees[i] = scan(t, root)
			}
			if (refusal[0] == nil) != (refusal[1] == nil) {
				t.Errorf("seed %d, %s: %v, and with %q first %v", seed, how, refusal[0], put, refusal[1])
			}
			if refusal[0] == nil {
				sameTree(t, trees[1], trees[0])
			}
		}
		if t.Failed() {
			t.Fatalf("seed %d: of %q first %q: %q", seed, names(t, plain), put, names(t, reordered))
		}
	}
	if layers < 50 {
		t.Errorf("%d layers could be converted", layers)
	}
}
