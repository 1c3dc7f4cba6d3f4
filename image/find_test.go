package image

import (
	"errors"
	"testing"

	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
)

// TestFind finds each layer of an image by the image's root alone.
func TestFind(t *testing.T) {
	d := newDaemon()
	pushed := push(t, d, twoPlatforms(t, ""))
	report, err := Inspect(t.Context(), d, pushed.CID.String())
	if err != nil {
		t.Fatal(err)
	}
	f := NewFinder(d)
	found := 0
	for _, m := range report.Manifests {
		for _, l := range m.Layers {
			cid, toc, err := f.Find(t.Context(), report.CID, l.Digest.String())
			if err != nil || cid != l.CID || toc != l.TOCDigest.String() {
				t.Errorf("layer %s: %s, %s, %v, want %s, %s", l.Digest, cid, toc, err, l.CID, l.TOCDigest)
			}
			found++
		}
	}
	if found != 4 {
		t.Errorf("%d layers were looked for", found)
	}
	if _, _, err := f.Find(t.Context(), report.CID, report.Target.Digest.String()); !errors.Is(err, ErrNoLayer) {
		t.Errorf("find what is no layer: %v", err)
	}
	if _, _, err := f.Find(t.Context(), "no-cid", report.Target.Digest.String()); err == nil {
		t.Error("found a layer of no image")
	}
	layer := report.Manifests[0].Layers[0]
	if _, _, err := f.Find(t.Context(), layer.CID, layer.Digest.String()); !errors.Is(err, oci.ErrNotRoot) {
		t.Errorf("find in what is no image: %v", err)
	}
}
