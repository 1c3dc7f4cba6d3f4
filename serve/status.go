package serve

import "net/http"

// status tells what the daemon is doing, for `ipfs-stargz status`. It is no
// command of Kubo's.
func (h *handler) status(w http.ResponseWriter, r *http.Request) error {
	s, err := h.Status(r.Context())
	if err != nil {
		return err
	}
	return h.reply(w, s)
}

// serveMetrics answers whoever collects metrics: by GET, unlike the RPC.
func (h *handler) serveMetrics(w http.ResponseWriter, r *http.Request) {
	if fromBrowser(r) {
		http.Error(w, "403 - Forbidden", http.StatusForbidden)
		return
	}
	h.Metrics.ServeHTTP(w, r)
}
