package oci

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestParseRoot(t *testing.T) {
	const good = `{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":12,"urls":["https://example.com/x","ipfs://` + rawCID + `"]}`
	desc, err := ParseRoot([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if c, err := CID(desc); err != nil || c.String() != rawCID {
		t.Errorf("CID = %v, %v", c, err)
	}
	with := func(old, new string) string {
		s := strings.Replace(good, old, new, 1)
		if s == good {
			t.Fatalf("%q is not in the descriptor", old)
		}
		return s
	}
	tar := make([]byte, 512)
	copy(tar[257:], "ustar")
	for _, tt := range []struct {
		name string
		data string
		want error
		says string
	}{
		{"empty", "", ErrNotRoot, "empty file"},
		{"gzip", "\x1f\x8b\x08\x00", ErrNotRoot, "gzip stream"},
		{"zstd", "\x28\xb5\x2f\xfd", ErrNotRoot, "zstd stream"},
		{"tar", string(tar), ErrNotRoot, "tar archive"},
		{"text", "hello", ErrNotRoot, "text/plain"},
		{"picture", "\x89PNG\x0d\x0a\x1a\x0a", ErrNotRoot, "image/png"},
		{"large", "{" + strings.Repeat(" ", MaxRootBytes) + "}", ErrNotRoot, "larger than any root"},
		{"index", `{"schemaVersion":2,"manifests":[]}`, ErrNotRoot, "image index itself"},
		{"manifest", `{"schemaVersion":2,"config":{},"layers":[]}`, ErrNotRoot, "image manifest itself"},
		{"config", `{"rootfs":{"type":"layers"}}`, ErrNotRoot, "image config"},
		{"array", `[]`, ErrNotRoot, "text/plain"},
		{"other JSON", `{"a":1}`, ErrNotRoot, "no descriptor"},
		{"wrong types", `{"mediaType":1}`, ErrNotRoot, "no descriptor"},
		{"trailing data", good + good, ErrNotRoot, "text/plain"},
		{"layer", with("index.v1+json", "layer.v1.tar"), ErrNotRoot, "not of an image index"},
		{"md5", with("sha256:e3", "md5:e3"), ErrInvalid, "unsupported"},
		{"short digest", with("sha256:e3", "sha256:"), ErrInvalid, "digest"},
		{"negative size", with(`"size":12`, `"size":-1`), ErrInvalid, "negative"},
		{"no size", with(`"size":12,`, ``), ErrInvalid, "no bytes"},
		{"huge", with(`"size":12`, `"size":4194305`), ErrLimit, "4194305"},
		{"no urls", with(`"urls"`, `"x"`), ErrNoCID, "no ipfs:// URL"},
		{"other schemes", with("ipfs://"+rawCID, "http://"+rawCID), ErrNoCID, "no ipfs:// URL"},
		{"no CID", with("ipfs://"+rawCID, "ipfs://x"), ErrNoCID, "URL"},
		{"path", with("ipfs://"+rawCID, "ipfs://"+rawCID+"/a"), ErrNoCID, "URL"},
		{"dag-cbor", with(rawCID, "bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"), ErrNoCID, "dag-cbor"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseRoot([]byte(tt.data))
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("ParseRoot = %v, want %q that says %q", err, tt.want, tt.says)
			}
		})
	}
}

func FuzzParseRoot(f *testing.F) {
	f.Add([]byte(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":1,"urls":["ipfs://` + rawCID + `"]}`))
	f.Add([]byte(`{"mediaType":"application/vnd.docker.distribution.manifest.list.v2+json","urls":["ipfs://QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"]}`))
	f.Add([]byte(`{"layers":[]}`))
	f.Add([]byte{0x1f, 0x8b})
	f.Fuzz(func(t *testing.T, data []byte) {
		desc, err := ParseRoot(data)
		if err != nil {
			for _, known := range []error{ErrNotRoot, ErrInvalid, ErrLimit, ErrNoCID} {
				if errors.Is(err, known) {
					return
				}
			}
			t.Fatalf("an error of no known kind: %v", err)
		}
		// What passes is fit to be fetched.
		if err := Check(desc); err != nil {
			t.Fatal(err)
		}
		if _, err := CID(desc); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzDocuments reads any bytes as each kind of document.
func FuzzDocuments(f *testing.F) {
	b := blobs{}
	b.index(f, on(b.image(f, "amd64"), "linux", "amd64"))
	for _, data := range b {
		f.Add(data)
	}
	f.Add([]byte(`{"config":{"digest":"sha256:x"},"layers":[{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		ctx := context.Background()
		b := blobs{}
		index := b.add(t, ocispec.MediaTypeImageIndex, data)
		manifest := b.add(t, ocispec.MediaTypeImageManifest, data)
		if tree, err := ReadTree(ctx, b.fetcher(), index); err == nil {
			// The entries are not there, but nothing else may go wrong.
			for _, choice := range []Choice{{}, {All: true}, {Platforms: []string{"linux/arm64"}}} {
				if _, err := choice.Pick(ctx, b.fetcher(), tree); err != nil && !errors.Is(err, ErrNoPlatform) && !errors.Is(err, os.ErrNotExist) {
					t.Errorf("Pick = %v", err)
				}
			}
		}
		m, err := ReadManifest(ctx, b.fetcher(), manifest)
		if err != nil {
			return
		}
		m.Config = b.add(t, ocispec.MediaTypeImageConfig, data)
		if c, err := ReadConfig(ctx, b.fetcher(), m); err == nil && len(c.RootFS.DiffIDs) != len(m.Layers) {
			t.Errorf("%d diff IDs for %d layers", len(c.RootFS.DiffIDs), len(m.Layers))
		}
	})
}

func TestParseCID(t *testing.T) {
	for _, s := range []string{rawCID, "ipfs://" + rawCID, "/ipfs/" + rawCID, "ipfs://" + pbCID, "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"} {
		if _, err := ParseCID(s); err != nil {
			t.Errorf("ParseCID(%q) = %v", s, err)
		}
	}
	for _, s := range []string{"", "ipfs://", "alpine", "https://" + rawCID, "ipfs://" + rawCID + "/x", "bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"} {
		if _, err := ParseCID(s); err == nil {
			t.Errorf("ParseCID(%q) gave no error", s)
		}
	}
}
