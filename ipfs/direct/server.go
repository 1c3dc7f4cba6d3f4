package direct

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

const (
	// gatewayProtocol is the trustless gateway, as the list of what is spoken
	// over HTTP names it.
	gatewayProtocol = "/ipfs/gateway"
	wellKnown       = "/.well-known/libp2p/protocols"

	rawBlock = "application/vnd.ipld.raw"
)

// Bounds on what peers can have us do.
const (
	servedAtOnce     = 512 // requests
	servedToOne      = maxFlights + 16
	serveReadTimeout = 30 * time.Second // of a request's head
	serveTimeout     = 2 * requestTimeout
	serveIdleTimeout = time.Minute
)

// server answers requests for blocks from the store.
type server struct {
	store Store
	sent  func(bytes int)
	slots chan struct{}

	mu  sync.Mutex
	now map[string]int // requests under way, by peer
}

func newServer(s Store, sent func(bytes int)) *http.Server {
	h := &server{store: s, sent: sent, slots: make(chan struct{}, servedAtOnce), now: make(map[string]int)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ipfs/{cid}", h.block)
	mux.HandleFunc("GET "+wellKnown, h.protocols)
	return &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: serveReadTimeout,
		ReadTimeout:       serveReadTimeout,
		WriteTimeout:      serveTimeout,
		IdleTimeout:       serveIdleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
	}
}

// protocols tells which paths are which protocol's.
func (s *server) protocols(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]map[string]string{gatewayProtocol: {"path": "/"}})
}

// block answers with a raw block, or without its body to HEAD.
func (s *server) block(w http.ResponseWriter, r *http.Request) {
	if format := r.URL.Query().Get("format"); format != "raw" && (format != "" || !strings.Contains(r.Header.Get("Accept"), rawBlock)) {
		http.Error(w, "only format=raw ("+rawBlock+") is served here", http.StatusNotAcceptable)
		return
	}
	c, err := cid.Decode(r.PathValue("cid"))
	if err == nil {
		err = ipfs.CheckCID(c)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	release, ok := s.admit(r)
	if !ok {
		w.Header().Set("Retry-After", "1")
		http.Error(w, "too many requests at once", http.StatusTooManyRequests)
		return
	}
	defer release()
	if data, ok := ipfs.Known(c); ok {
		s.send(w, r, c, data)
		return
	}
	err = s.store.View(c, func(data []byte) error {
		s.send(w, r, c, data)
		return nil
	})
	switch {
	case errors.Is(err, ErrNotHeld):
		http.Error(w, fmt.Sprintf("%s is not held here", c), http.StatusNotFound)
	case err != nil:
		http.Error(w, "the block cannot be read", http.StatusInternalServerError)
	}
}

// send answers with the data of a block.
func (s *server) send(w http.ResponseWriter, r *http.Request, c cid.Cid, data []byte) {
	h := w.Header()
	h.Set("Content-Type", rawBlock)
	h.Set("Content-Length", strconv.Itoa(len(data)))
	h.Set("Cache-Control", "public, max-age=29030400, immutable")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Etag", `"`+c.String()+`.raw"`)
	if r.Method == http.MethodHead {
		return
	}
	n, _ := w.Write(data) // an error ends the connection
	s.sent(n)
}

// admit counts a request, unless there are too many: in all, or of its peer.
func (s *server) admit(r *http.Request) (release func(), ok bool) {
	select {
	case s.slots <- struct{}{}:
	case <-r.Context().Done():
		return nil, false
	}
	peer := r.RemoteAddr
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now[peer] >= servedToOne {
		<-s.slots
		return nil, false
	}
	s.now[peer]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.now[peer]--; s.now[peer] == 0 {
			delete(s.now, peer)
		}
		<-s.slots
	}, true
}
