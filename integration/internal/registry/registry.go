// Package registry serves test images as an OCI registry, read-only: what the
// lazy path is compared with.
package registry

import (
	"net/http"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/image"
)

// Handler serves one image under the given repository, as the tag "latest" and
// by its digest.
func Handler(repository string, im *image.Image) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/{$}", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /v2/"+repository+"/manifests/{reference}", func(w http.ResponseWriter, r *http.Request) {
		if ref := r.PathValue("reference"); ref != "latest" && ref != im.Manifest.Digest.String() {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", im.Manifest.MediaType)
		serve(w, r, im.Blob(im.Manifest), im.Manifest.Digest)
	})
	mux.HandleFunc("GET /v2/"+repository+"/blobs/{digest}", func(w http.ResponseWriter, r *http.Request) {
		d, err := digest.Parse(r.PathValue("digest"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		serve(w, r, filepath.Join(im.Dir, "blobs", d.Algorithm().String(), d.Encoded()), d)
	})
	return mux
}

func serve(w http.ResponseWriter, r *http.Request, path string, d digest.Digest) {
	f, err := os.Open(path)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Docker-Content-Digest", d.String())
	http.ServeContent(w, r, "", st.ModTime(), f)
}
