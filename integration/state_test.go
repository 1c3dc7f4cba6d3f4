package integration

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// checkState reads what the daemon of b says of itself, while an image is
// mounted of which some was read: as people, as a script, and as Prometheus.
func checkState(t *testing.T, p *pair) {
	t.Helper()
	out, err := p.b.Stargz(t.Context(), "status", "--json")
	p.must(err)
	var s struct {
		Files struct {
			Mode, Why string
			Requests  []struct {
				Kind  string
				Count int64
			}
			Chunks struct{ Demand struct{ Bytes int64 } }
			Cache  struct{ Bytes, Objects int64 }
			Layers []struct {
				CID   string
				Bytes int64
			}
			Images []struct {
				Layers     []string
				Mounted    bool
				Bytes      int64
				TotalBytes int64 `json:"total_bytes"`
			}
		}
		Sources []struct {
			Source string
			Bytes  int64
		}
	}
	p.must(json.Unmarshal([]byte(out), &s))
	f := s.Files
	if f.Mode != p.conf.Mode || f.Why == "" {
		t.Errorf("mode %q, because %q; want %s", f.Mode, f.Why, p.conf.Mode)
	}
	var met int64
	for _, r := range f.Requests {
		met += r.Count
	}
	if met == 0 || f.Chunks.Demand.Bytes == 0 || f.Cache.Bytes == 0 || f.Cache.Objects == 0 {
		t.Errorf("files were read, and the daemon knows nothing of it: %s", out)
	}
	if len(s.Sources) != 1 || s.Sources[0].Source != "node" || s.Sources[0].Bytes == 0 {
		t.Errorf("bytes from %+v", s.Sources)
	}
	if len(f.Images) != 1 || !f.Images[0].Mounted || len(f.Images[0].Layers) != len(f.Layers) {
		t.Fatalf("images: %+v", f.Images)
	}
	eventually(t, "some and not all of the image to be here", func() bool {
		out, err := p.b.Stargz(t.Context(), "status", "--json")
		p.must(err)
		p.must(json.Unmarshal([]byte(out), &s))
		im := s.Files.Images[0]
		return 0 < im.Bytes && im.Bytes < im.TotalBytes
	})

	out, err = p.b.Stargz(t.Context(), "status")
	p.must(err)
	for _, want := range []string{p.conf.Mode + ": ", "IMAGE, LAYER", f.Layers[0].CID, "mounted"} {
		if !strings.Contains(out, want) {
			t.Errorf("status does not say %q:\n%s", want, out)
		}
	}
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", p.b.APISocket())
		},
		DisableKeepAlives: true,
	}}
	resp, err := client.Get("http://daemon/metrics")
	p.must(err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	p.must(err)
	for _, want := range []string{`ipfs_stargz_info{mode="` + p.conf.Mode + `"`, "ipfs_stargz_fuse_request_seconds_bucket{", "ipfs_stargz_image_total_bytes{", "ipfs_stargz_cache_objects "} {
		if !strings.Contains(string(text), want) {
			t.Errorf("metrics lack %q:\n%s", want, text)
		}
	}
}
