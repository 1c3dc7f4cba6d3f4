package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/ipfs-stargz/ipfs-stargz/image/oci"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

func TestInspect(t *testing.T) {
	ctx := context.Background()
	d := newDaemon()
	pushed := push(t, d, twoPlatforms(t, ""))
	report, err := Inspect(ctx, d, "ipfs://"+pushed.CID.String())
	if err != nil {
		t.Fatal(err)
	}
	if report.CID != pushed.CID.String() || report.Target.Digest != pushed.Target.Digest || len(report.Manifests) != 2 {
		t.Fatalf("report: %+v", report)
	}
	for i, platform := range []string{"linux/amd64", "linux/arm64"} {
		m := report.Manifests[i]
		if m.Kind != "image" || m.Platform != platform || m.Config == nil || m.Config.CID == "" || len(m.Layers) != 2 {
			t.Errorf("manifest %d: %+v", i, m)
		}
		for j, l := range m.Layers {
			if !l.Lazy || l.Why != "" || l.Format != "estargz" || l.TOCDigest == "" {
				t.Errorf("layer %d of manifest %d: %+v", j, i, l)
			}
		}
		// What precedes the one large file, the file, and the table of contents.
		if got := m.Layers[0].Blocks; got != 3 {
			t.Errorf("%d blocks, want 3", got)
		}
	}

	var text bytes.Buffer
	if err := report.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{pushed.CID.String(), "\nlinux/amd64\n", "\nlinux/arm64\n", "LAYER  SIZE", string(report.Manifests[1].Layers[1].TOCDigest)} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is not in the text:\n%s", want, &text)
		}
	}
	data, err := json.Marshal(report)
	if err != nil {
		t.Fatal(err)
	}
	var again Report
	if err := json.Unmarshal(data, &again); err != nil || !reflect.DeepEqual(again, report) {
		t.Errorf("JSON: %+v, %v", again, err)
	}
}

// TestInspectWhyNot has a layer for each reason not to be lazy.
func TestInspectWhyNot(t *testing.T) {
	ctx := context.Background()
	d := newDaemon()
	_, m := manifestOf(t, d, push(t, d, twoPlatforms(t, ""), "linux/amd64").CID)
	h := hostile{t, d}
	lazy := m.Layers[1]
	bent := func(change func(l *ocispec.Descriptor)) ocispec.Descriptor {
		l := lazy
		l.Annotations = map[string]string{oci.AnnotationTOCDigest: lazy.Annotations[oci.AnnotationTOCDigest]}
		change(&l)
		return l
	}
	absent := newDaemon().addBlob(t, ocispec.MediaTypeImageLayerGzip, []byte("absent"))
	plain := d.addBlob(t, ocispec.MediaTypeImageLayerZstd, []byte("plain"))
	statement := d.addBlob(t, "application/vnd.in-toto+json", []byte("{}"))
	layers := []struct {
		layer  ocispec.Descriptor
		says   string
		format string
	}{
		{plain, "not an eStargz", "zstd"},
		{absent, "unavailable", "gzip"},
		{statement, "no file system layer", ""},
		{bent(func(l *ocispec.Descriptor) { l.URLs = nil }), "no ipfs:// URL", "gzip"},
		{bent(func(l *ocispec.Descriptor) { l.Size++ }), "descriptor says", "gzip"},
		{bent(func(l *ocispec.Descriptor) { l.Size-- }), "too large", "gzip"},
		{bent(func(l *ocispec.Descriptor) { delete(l.Annotations, oci.AnnotationTOCDigest) }), "does not name its TOC digest", "estargz"},
		{bent(func(l *ocispec.Descriptor) { l.Annotations[oci.AnnotationTOCDigest] = "sha256:x" }), "sha256:x", "estargz"},
	}
	root := d.addRoot(t, h.manifest(func(m *ocispec.Manifest) {
		m.Layers = nil
		var tarballs [][]byte
		for _, l := range layers {
			m.Layers = append(m.Layers, l.layer)
			tarballs = append(tarballs, nil)
		}
		m.Config = h.config(tarballs...)
	}))
	report, err := Inspect(ctx, d, root.String())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range layers {
		got := report.Manifests[0].Layers[i]
		if got.Lazy || !strings.Contains(got.Why, want.says) || got.Format != want.format {
			t.Errorf("layer %d: %+v, want format %q and a reason that says %q", i, got, want.format, want.says)
		}
	}
	var text bytes.Buffer
	if err := report.WriteText(&text); err != nil || strings.Count(text.String(), " is not lazy: ") != len(layers) {
		t.Errorf("text, %v:\n%s", err, &text)
	}
}

func TestInspectKinds(t *testing.T) {
	d := newDaemon()
	h := hostile{t, d}
	attestation := h.manifest(func(*ocispec.Manifest) {})
	attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	artifact := h.manifest(func(m *ocispec.Manifest) {
		m.Config = d.addBlob(t, ocispec.MediaTypeEmptyJSON, []byte("{}"))
	})
	other := d.addBlob(t, "application/vnd.example", []byte("x"))
	root := d.addRoot(t, h.index(attestation, artifact, other))
	report, err := Inspect(context.Background(), d, root.String())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"attestation", "artifact", "other"} {
		if got := report.Manifests[i].Kind; got != want {
			t.Errorf("entry %d is of kind %q, want %q", i, got, want)
		}
	}
	var text bytes.Buffer
	if err := report.WriteText(&text); err != nil || !strings.Contains(text.String(), "\n(artifact)\n") {
		t.Errorf("text, %v:\n%s", err, &text)
	}
}

func TestInspectErrors(t *testing.T) {
	ctx := context.Background()
	d := newDaemon()
	h := hostile{t, d}
	deep := d.addRoot(t, h.nested(oci.MaxIndexDepth+1))
	var missing *ipfs.UnavailableError
	if _, err := Inspect(ctx, d, newDaemon().add(t, []byte("unknown")).String()); !errors.As(err, &missing) {
		t.Errorf("unknown CID: %v", err)
	}
	if _, err := Inspect(ctx, d, deep.String()); !errors.Is(err, oci.ErrLimit) {
		t.Errorf("nested too deep: %v", err)
	}
	if _, err := Inspect(ctx, d, d.add(t, nil).String()); !errors.Is(err, oci.ErrNotRoot) || !strings.Contains(err.Error(), "empty file") {
		t.Errorf("empty file: %v", err)
	}
	if _, err := Inspect(ctx, d, "x"); err == nil {
		t.Error("no CID: no error")
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := Inspect(cancelled, d, deep.String()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
