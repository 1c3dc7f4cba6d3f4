package integration

import (
	"archive/tar"
	"context"
	"fmt"
	"math/rand/v2"
	"path"
	"testing"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/image"
)

// What the image of the pressure tests holds: many small files, some of a few
// hundred KiB, and two of several chunks, which a cache that is too small cannot
// hold.
const (
	pressureSmall    = 200
	pressureFolder   = 20 // small files in each folder
	pressureMedium   = 20
	pressureLarge    = 2
	pressureLargest  = 9 << 20  // bytes of each of these
	pressureContents = 28 << 20 // bytes of all of them, about
)

// newPressureImage builds the image anew: it takes no longer than to verify one
// that was kept.
func newPressureImage(t *testing.T) *image.Image {
	t.Helper()
	im, err := image.NewStore(t.TempDir()).Get(t.Context(), image.Recipe{
		Name: "pressure",
		Layers: func(context.Context, string, string) ([]image.Layer, error) {
			return []image.Layer{pressureLayer(1, lowestLayer), pressureLayer(2, middleLayer), pressureLayer(3, highestLayer)}, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func smallName(i int) string  { return fmt.Sprintf("small/%d/f%d", i/pressureFolder, i) }
func mediumName(i int) string { return fmt.Sprintf("medium/f%d", i) }

// lowestLayer has a file of each name.
func lowestLayer(w *pressureWriter) {
	w.folder("small")
	for i := range pressureSmall {
		if i%pressureFolder == 0 {
			w.folder(path.Dir(smallName(i)))
		}
		w.file(smallName(i), 1<<10+w.random.IntN(29<<10))
	}
	w.folder("medium")
	for i := range pressureMedium {
		w.file(mediumName(i), 100<<10+w.random.IntN(500<<10))
	}
	w.folder("large")
	for i := range pressureLarge {
		w.file(fmt.Sprintf("large/f%d", i), pressureLargest+w.random.IntN(1000))
	}
}

// middleLayer changes, removes and links.
func middleLayer(w *pressureWriter) {
	w.folder("small")
	for i := 0; i < pressureSmall-pressureFolder; i += 10 {
		if i%pressureFolder == 0 {
			w.folder(path.Dir(smallName(i)))
		}
		w.file(smallName(i), 1<<10+w.random.IntN(29<<10), "user.changed", fmt.Sprint(i), "user.by", "the middle layer")
		w.whiteout(smallName(i + 1))
	}
	w.opaque(path.Dir(smallName(pressureSmall - 1)))
	w.file(smallName(pressureSmall-1), 7<<10)
	w.folder("medium")
	w.file(mediumName(3), 300<<10, "user.changed", "3")
	w.link("medium/link", mediumName(3))
	w.whiteout(mediumName(4))
	w.folder("links")
	w.symlink("links/symlink", "../"+mediumName(5))
	w.symlink("links/absolute", "/large/f0")
	w.symlink("links/dangling", "nowhere")
	w.file("links/first", 20<<10)
	w.link("links/second", "links/first")
	w.link("links/third", "links/first")
}

// highestLayer brings back what was removed, and replaces one of several links.
func highestLayer(w *pressureWriter) {
	w.folder("small")
	w.folder(path.Dir(smallName(1)))
	w.file(smallName(1), 5<<10)
	w.whiteout(smallName(2))
	w.folder("medium")
	w.file(mediumName(4), 500<<10)
	w.symlink(mediumName(6), "f5")
	w.folder("links")
	w.file("links/third", 3<<10)
	w.folder("links/empty")
}

// pressureLayer is a layer that write writes. Layers are days apart.
func pressureLayer(number uint64, write func(*pressureWriter)) image.Layer {
	return func(_ context.Context, t *tar.Writer) error {
		w := &pressureWriter{
			tar:    t,
			random: rand.New(rand.NewPCG(pressureSeed, number)),
			time:   time.Date(2024, time.March, int(number), 12, 0, 0, 500, time.UTC),
		}
		write(w)
		return w.err
	}
}

// pressureWriter writes a layer; after an error it writes nothing more.
type pressureWriter struct {
	tar    *tar.Writer
	random *rand.Rand
	time   time.Time
	err    error
}

func (w *pressureWriter) folder(name string) {
	w.add(tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
}

// file writes a file of n bytes with extended attributes, given by name and
// value.
func (w *pressureWriter) file(name string, n int, xattrs ...string) {
	h := tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(n), Uid: w.random.IntN(3)}
	for i := 0; i < len(xattrs); i += 2 {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+xattrs[i]] = xattrs[i+1]
	}
	w.add(h, w.contents(n))
}

// contents draws n bytes of hexadecimal digits, which can be compressed by half.
func (w *pressureWriter) contents(n int) []byte {
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = fmt.Appendf(b, "%016x", w.random.Uint64())
	}
	return b[:n]
}

func (w *pressureWriter) link(name, to string) {
	w.add(tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to, Mode: 0o644}, nil)
}

func (w *pressureWriter) symlink(name, to string) {
	w.add(tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}, nil)
}

// whiteout removes what lower layers have at name.
func (w *pressureWriter) whiteout(name string) {
	w.add(tar.Header{Name: path.Dir(name) + "/.wh." + path.Base(name), Typeflag: tar.TypeReg, Mode: 0o600}, nil)
}

// opaque makes a folder hide what lower layers have in it.
func (w *pressureWriter) opaque(name string) {
	w.folder(name)
	w.whiteout(name + "/.wh..opq")
}

func (w *pressureWriter) add(h tar.Header, data []byte) {
	if w.err != nil {
		return
	}
	h.ModTime, h.Format = w.time, tar.FormatPAX
	if w.err = w.tar.WriteHeader(&h); w.err == nil {
		_, w.err = w.tar.Write(data)
	}
}
