package image

import (
	"archive/tar"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// bigDirectoryEntries is the number of entries of the folder "many" of [Odd].
const bigDirectoryEntries = 50_000

// Odd is an image with every kind of inode that a layer can hold (a tar has no
// sockets) and with names, times, owners, modes, extended attributes and
// contents at the edges of what is allowed. What cannot be said in the JSON of
// an eStargz TOC, names that are not UTF-8, is a layer of its own.
func Odd() Recipe {
	return Recipe{
		Name:   "odd",
		Config: ocispec.ImageConfig{},
		Layers: func(context.Context, string, string) ([]Layer, error) {
			return []Layer{
				entries(oddKinds()), entries(oddMetadata()), entries(oddNames()),
				entries(oddBytes()), entries(oddContents()), bigDirectory,
			}, nil
		},
	}
}

// Huge is an image with one file of more than 4 GiB, nearly all of it zeros:
// "huge". At each GiB it has its offset, written out in decimal.
func Huge() Recipe {
	return Recipe{
		Name:   "huge",
		Config: ocispec.ImageConfig{},
		Layers: func(context.Context, string, string) ([]Layer, error) {
			return []Layer{hugeFile}, nil
		},
	}
}

// HugeSize is the size in bytes of the file of [Huge].
const HugeSize = 4<<30 + 5<<20 + 7

func entries(list []entry) Layer {
	return func(_ context.Context, w *tar.Writer) error {
		for _, e := range list {
			if err := add(w, e.Header, e.data); err != nil {
				return err
			}
		}
		return nil
	}
}

func oddKinds() []entry {
	dev := func(name string, kind byte, major, minor int64) entry {
		return entry{Header: tar.Header{Name: name, Typeflag: kind, Mode: 0o660, Gid: 6, ModTime: epoch, Devmajor: major, Devminor: minor}}
	}
	link := func(name, target string) entry {
		return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target, ModTime: epoch}}
	}
	return []entry{
		directory("kinds", 0o755), directory("kinds/empty", 0o700), directory("kinds/other", 0o755),
		regular("kinds/file", 0o644, "contents\n"),
		regular("kinds/empty-file", 0o644, ""),
		link("kinds/link", "kinds/file"),
		link("kinds/other/link", "kinds/file"),
		link("kinds/empty-link", "kinds/empty-file"),
		symlink("kinds/relative", "other/link"),
		symlink("kinds/absolute", "/kinds/file"),
		symlink("kinds/dangling", "no/such/file"),
		symlink("kinds/loop", "loop"),
		symlink("kinds/to-directory", "other"),
		symlink("kinds/long", strings.Repeat("0123456789abcde/", 255)),
		link("kinds/link-to-symlink", "kinds/relative"),
		dev("kinds/null", tar.TypeChar, 1, 3),
		dev("kinds/char-large", tar.TypeChar, 4095, 1048575),
		dev("kinds/block", tar.TypeBlock, 7, 200),
		dev("kinds/fifo", tar.TypeFifo, 0, 0),
		link("kinds/link-to-fifo", "kinds/fifo"),
		link("kinds/link-to-null", "kinds/null"),
	}
}

func oddMetadata() []entry {
	list := []entry{directory("meta", 0o755)}
	for _, mode := range []int64{0, 0o111, 0o4755, 0o2755, 0o6711, 0o1644, 0o7777, 0o444} {
		list = append(list, regular(fmt.Sprintf("meta/mode-%04o", mode), mode, "x"))
	}
	list = append(list, directory("meta/sticky", 0o1777), directory("meta/setgid", 0o2775), directory("meta/closed", 0))

	for _, id := range []int{1, 65535, 65536, 1 << 21, 1<<31 - 1, 1 << 31, 4294967294} {
		e := regular(fmt.Sprintf("meta/owner-%d", id), 0o640, "x")
		e.Uid, e.Gid = id, id
		list = append(list, e)
	}
	for name, t := range map[string]time.Time{
		"nanosecond": time.Unix(1_700_000_000, 1), "almost": time.Unix(1_700_000_000, 999_999_999), "zero": time.Unix(0, 0),
		"first-ns": time.Unix(0, 1), "before-epoch": time.Unix(-86_400, 500), "y2038": time.Unix(1<<31, 3), "y2106": time.Unix(1<<32, 5),
		"y2400": time.Date(2400, 1, 1, 0, 0, 0, 123_456_789, time.UTC),
	} {
		e := regular("meta/time-"+name, 0o644, "x")
		e.ModTime = t
		d := directory("meta/dir-time-"+name, 0o755)
		d.ModTime = t
		list = append(list, e, d)
	}

	xattrs := func(e entry, pairs ...string) entry {
		e.PAXRecords = map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			e.PAXRecords["SCHILY.xattr."+pairs[i]] = pairs[i+1]
		}
		return e
	}
	// VFS_CAP_REVISION_2 with cap_net_raw, effective and permitted.
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	return append(sorted(list),
		xattrs(regular("meta/capability", 0o755, "x"), "security.capability", capability),
		xattrs(regular("meta/xattrs", 0o644, "x"), "user.one", "1", "user.binary", "\xff\xfe\x01\n=", "trusted.some", "t", "user.long", strings.Repeat("v", 2000)),
		xattrs(directory("meta/xattr-directory", 0o755), "user.dir", "d", "trusted.dir", "t"),
		xattrs(symlink("meta/xattr-symlink", "xattrs"), "trusted.link", "l"),
	)
}

func oddNames() []entry {
	list := []entry{directory("names", 0o755)}
	for _, name := range []string{
		" ", "  leading and trailing  ", "-rf", "...", "..a", "~", "*", "?", "[a]", "$HOME", "`id`", "'", "\"", "\\", "a\\b", "new\nline", "tab\there",
		"\x01\x02\x1b[31m\x7f", "a:b", "a,b", "a=b", "lowerdir=x:y", "a.wh.b", "%2e%2e", "CON", "é", "e\u0301", "\u202egnp.exe", "日本語", "👩\u200d🚀", "\ufeffbom", "\ufffd",
		strings.Repeat("n", 255), strings.Repeat("é", 127),
	} {
		list = append(list, regular("names/"+name, 0o644, name))
	}
	// A path of about 3,000 bytes: what unpacks it puts its own before it.
	deep := "names/deep"
	list = append(list, directory(deep, 0o755))
	for range 15 {
		deep += "/" + strings.Repeat("p", 200)
		list = append(list, directory(deep, 0o755))
	}
	list = append(list, regular(deep+"/file", 0o644, "deep"))
	// And many folders in one another.
	narrow := "names/narrow"
	list = append(list, directory(narrow, 0o755))
	for range 500 {
		narrow += "/d"
		list = append(list, directory(narrow, 0o755))
	}
	return append(list, regular(narrow+"/f", 0o644, "narrow"))
}

func oddBytes() []entry {
	return []entry{
		directory("bytes", 0o755),
		regular("bytes/\xff\xfe", 0o644, "not UTF-8"),
		regular("bytes/latin1-\xe9", 0o644, "not UTF-8"),
		regular("bytes/\xc3", 0o644, "cut"),
		regular("bytes/"+strings.Repeat("\x80", 255), 0o644, "255 bytes"),
		directory("bytes/dir-\xf0", 0o755),
		regular("bytes/dir-\xf0/inside", 0o644, "inside"),
		symlink("bytes/symlink", "\xff\xfe"),
	}
}

// oddContents has sizes around those of eStargz chunks (4 MiB) and pages.
func oddContents() []entry {
	random := rand.New(rand.NewPCG(4, 1))
	noise := make([]byte, 9<<20)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	list := []entry{directory("contents", 0o755)}
	for _, size := range []int{1, 4095, 4096, 4097, 65536, 1 << 20, 4<<20 - 1, 4 << 20, 4<<20 + 1, 9 << 20} {
		list = append(list, regular(fmt.Sprintf("contents/random-%d", size), 0o644, string(noise[:size])))
	}
	// The same contents once more: with another owner, and in another place.
	twin := regular("contents/twin", 0o600, string(noise[:1<<20]))
	twin.Uid = 1000
	return append(list, twin,
		regular("contents/zeros", 0o644, strings.Repeat("\x00", 5<<20)),
		regular("contents/text", 0o644, strings.Repeat("All work and no play makes Jack a dull boy.\n", 1<<15)))
}

func bigDirectory(ctx context.Context, w *tar.Writer) error {
	dir := directory("many", 0o755)
	if err := add(w, dir.Header, ""); err != nil {
		return err
	}
	for i := range bigDirectoryEntries {
		if err := ctx.Err(); err != nil {
			return err
		}
		// A thousand different contents, each under fifty names.
		e := regular(fmt.Sprintf("many/entry-%05d", i), 0o644, fmt.Sprintf("contents %d\n", i%1000))
		if err := add(w, e.Header, e.data); err != nil {
			return err
		}
	}
	return nil
}

func hugeFile(ctx context.Context, w *tar.Writer) error {
	h := regular("huge", 0o644, "").Header
	h.Size, h.Format = HugeSize, tar.FormatPAX
	if err := w.WriteHeader(&h); err != nil {
		return err
	}
	const mebibyte = 1 << 20
	zeros := make([]byte, mebibyte)
	for offset := int64(0); offset < HugeSize; offset += mebibyte {
		if err := ctx.Err(); err != nil {
			return err
		}
		block := zeros
		if offset%(1<<30) == 0 {
			block = make([]byte, mebibyte)
			copy(block, fmt.Sprintf("%d\n", offset))
		}
		if left := HugeSize - offset; left < mebibyte {
			block = []byte("the end")[:left]
		}
		if _, err := w.Write(block); err != nil {
			return err
		}
	}
	return nil
}

func directory(name string, mode int64) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode, ModTime: epoch}}
}

func regular(name string, mode int64, data string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode, ModTime: epoch}, data: data}
}

func symlink(name, target string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777, ModTime: epoch}}
}

// sorted orders entries by name, so that folders come before what is in them.
func sorted(list []entry) []entry {
	slices.SortFunc(list, func(a, b entry) int { return strings.Compare(a.Name, b.Name) })
	return list
}
