package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	gocar "github.com/ipld/go-car/v2"
	"github.com/ipld/go-car/v2/storage"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/car"
)

// The parts of an image are what push stored, for all platforms, each once.
func TestParts(t *testing.T) {
	d := newDaemon()
	result := push(t, d, twoPlatforms(t, ""))
	got, err := Parts(t.Context(), d, result.CID)
	if err != nil {
		t.Fatal(err)
	}
	if got[0] != result.CID {
		t.Errorf("the first part is %s, want the root %s", got[0], result.CID)
	}
	want := slices.Clone(d.pinned)
	for _, list := range [][]cid.Cid{got, want} {
		slices.SortFunc(list, func(a, b cid.Cid) int { return strings.Compare(a.String(), b.String()) })
	}
	if want = slices.Compact(want); !slices.Equal(got, want) || len(got) != 9 { // root, index, 2 manifests, 2 configs, 3 layers
		t.Errorf("parts %v, want %v", got, want)
	}
	// Together they are all that was stored.
	blocks := map[cid.Cid]bool{}
	for _, part := range got {
		err := ipfs.Walk(t.Context(), d, part, ipfs.Want{}, func(c cid.Cid, _ []byte) error {
			blocks[c] = true
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(blocks) != d.Len() {
		t.Errorf("the parts have %d blocks, %d were stored", len(blocks), d.Len())
	}
}

// What is no image is its own only part; an image that is not all in IPFS, or
// cannot be read, has none.
func TestPartsOfOthers(t *testing.T) {
	d := newDaemon()
	for name, data := range map[string][]byte{
		"text": []byte("hello"), "JSON": []byte(`{"a":1}`), "empty": {}, "large": large(3<<20, 1),
	} {
		c := d.add(t, data)
		if got, err := Parts(t.Context(), d, c); err != nil || len(got) != 1 || got[0] != c {
			t.Errorf("%s: %v, %v; want itself", name, got, err)
		}
	}
	elsewhere := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	elsewhere.SchemaVersion = 2
	elsewhere.Config = d.addBlob(t, ocispec.MediaTypeImageConfig, []byte("{}"))
	layer := d.addBlob(t, ocispec.MediaTypeImageLayerGzip, []byte("layer"))
	layer.URLs = []string{"https://example.com/layer"}
	elsewhere.Layers = []ocispec.Descriptor{layer}
	root := d.addRoot(t, d.addBlob(t, ocispec.MediaTypeImageManifest, elsewhere))
	if _, err := Parts(t.Context(), d, root); !errors.Is(err, oci.ErrNoCID) || !strings.Contains(err.Error(), root.String()) {
		t.Errorf("a layer that is not in IPFS: %v", err)
	}
	gone := d.addBlob(t, ocispec.MediaTypeImageManifest, elsewhere)
	c, err := oci.CID(gone)
	if err != nil {
		t.Fatal(err)
	}
	d.Delete(c)
	var missing *ipfs.UnavailableError
	if _, err := Parts(t.Context(), d, d.addRoot(t, gone)); !errors.As(err, &missing) {
		t.Errorf("a manifest that is nowhere: %v", err)
	}
}

// An image goes from one site to another in a file, and is whole and pinned
// there; a file that is cut off or damaged pins nothing.
func TestCARBetweenSites(t *testing.T) {
	ctx := context.Background()
	a, b := newSite(t), newSite(t)
	result := push(t, a, twoPlatforms(t, ""))
	path := filepath.Join(t.TempDir(), "image.car")
	size, err := SaveCAR(ctx, a, result.CID, path)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil || int64(len(raw)) != size {
		t.Fatalf("%d bytes, said to be %d, %v", len(raw), size, err)
	}

	flipped := bytes.Clone(raw)
	flipped[len(flipped)-1000] ^= 1
	for name, tt := range map[string]struct {
		data []byte
		want string
	}{
		"empty":           {nil, "EOF"},
		"no CAR":          {[]byte("PK\x03\x04 something else"), "CAR"},
		"cut in a block":  {raw[:len(raw)/2], "EOF"},
		"cut at a block":  {raw[:firstBlocks(t, raw, 3)], "not whole"},
		"damaged":         {flipped, "does not match its CID"},
		"cut in the head": {raw[:20], "EOF"},
	} {
		bad := filepath.Join(t.TempDir(), "bad.car")
		if err := os.WriteFile(bad, tt.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadCAR(ctx, b, bad, cid.Undef); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v; want %q and the file's name", name, err, tt.want)
		}
		if pins, err := b.Pins(ctx); err != nil || len(pins) != 0 {
			t.Fatalf("%s: half pinned: %+v, %v", name, pins, err)
		}
	}
	other := newDaemon().add(t, []byte("another"))
	if _, err := LoadCAR(ctx, b, path, other); err == nil || !strings.Contains(err.Error(), other.String()) {
		t.Errorf("another image was asked for: %v", err)
	}
	for range 2 { // again changes nothing
		if root, err := LoadCAR(ctx, b, path, result.CID); err != nil || root != result.CID {
			t.Fatalf("%v, %v", root, err)
		}
	}
	pins, err := b.Pins(ctx)
	if err != nil || len(pins) != 1 || pins[0].CID != result.CID || pins[0].Held != pins[0].Size {
		t.Errorf("pins: %+v, %v", pins, err)
	}
	cctx, c := newContainerd(t)
	if result, err := pull(cctx, c.Client, result.CID, options(b, result.CID)); err != nil || result.FetchedFull != 0 {
		t.Errorf("pull at the other site: %+v, %v", result, err)
	}
	// And from there back into the same file.
	back := filepath.Join(t.TempDir(), "back.car")
	if _, err := SaveCAR(ctx, b, result.CID, back); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(back); err != nil || !bytes.Equal(again, raw) {
		t.Errorf("not the same file: %v", err)
	}
}

// firstBlocks is how many bytes the first n blocks of a CAR have, with its head.
func firstBlocks(t *testing.T, raw []byte, n int) int {
	t.Helper()
	in := bytes.NewReader(raw)
	r, err := car.NewReader(struct{ io.Reader }{in})
	for range n {
		if err == nil {
			_, err = r.Next()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return len(raw) - in.Len()
}

// A CAR that cannot be written whole leaves no file.
func TestSaveCARFails(t *testing.T) {
	d := newDaemon()
	result := push(t, d, twoPlatforms(t, ""))
	all, err := Parts(t.Context(), d, result.CID)
	if err != nil {
		t.Fatal(err)
	}
	d.Delete(all[len(all)-1])
	dir := t.TempDir()
	var missing *ipfs.UnavailableError
	if _, err := SaveCAR(t.Context(), d, result.CID, filepath.Join(dir, "x.car")); !errors.As(err, &missing) {
		t.Errorf("%v", err)
	}
	noTemp(t, dir)
}

// A CAR with several roots is no image's.
func TestLoadCAROfSeveralRoots(t *testing.T) {
	d := newDaemon()
	path := filepath.Join(t.TempDir(), "two.car")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	roots := []cid.Cid{d.add(t, []byte("one")), d.add(t, []byte("two"))}
	if _, err := storage.NewWritable(f, roots, gocar.WriteAsCarV1(true)); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadCAR(t.Context(), d, path, cid.Undef); !errors.Is(err, car.ErrBad) || !strings.Contains(err.Error(), "2 roots") {
		t.Errorf("%v", err)
	}
}
