// Package serve is what the daemon offers to other programs. It has the subset
// of Kubo's RPC that our own command line (package ipfs/kubo) and other tools
// use to get content into and out of the node.
//
// The RPC gives whoever reaches it the node's blocks and disk, as Kubo's does:
// it is for a unix socket, whose mode says who may connect.
//
// See https://docs.ipfs.tech/reference/kubo/rpc/.
package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"time"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/store/pins"
)

// Store is what the RPC needs of the node's blocks.
type Store interface {
	ipfs.Blocks
	// Put verifies blocks and stores them.
	Put(ctx context.Context, bs ...blocks.Block) error
	// Has tells whether a block is in the store itself.
	Has(ctx context.Context, c cid.Cid) (bool, error)
	// Sync returns when what was put is on stable storage.
	Sync(ctx context.Context) error
}

// Pins is what the RPC needs to keep things in the node; ipfs/store has it.
type Pins interface {
	// Pin keeps what is here whole, or fails with a [*store.MissingError].
	Pin(ctx context.Context, p pins.Pin) (pins.Pin, error)
	// Unpin lets go; the error may wrap [pins.ErrNotPinned].
	Unpin(ctx context.Context, root cid.Cid) error
	Pins(ctx context.Context) ([]pins.Pin, error)
	// Held tells how many bytes of a pin are here.
	Held(ctx context.Context, p pins.Pin) (int64, error)
}

// Repo is what the RPC needs of the node's own blocks; ipfs/store has it.
type Repo interface {
	// Local gets blocks without asking the network.
	Local() ipfs.Blocks
	Stat() store.Stat
	// Collect removes what nothing pins, oldest first, down to target bytes.
	Collect(ctx context.Context, target int64, removed func(c cid.Cid, size int64)) (store.Freed, error)
}

// Swarm is what the RPC tells of the node and its peers.
type Swarm interface {
	ID() string
	Addrs() []string          // multiaddrs with /p2p/ID at the end
	PeersConnected() []string // the same
}

// Config has what a handler needs.
type Config struct {
	Store Store
	Pins  Pins
	Repo  Repo
	// Parts lists the roots of the DAGs that make up what a CID names, itself
	// among them: the documents and layers of an image. It reads what it needs
	// from blocks. nil: everything is one DAG.
	Parts func(ctx context.Context, blocks ipfs.Blocks, root cid.Cid) ([]cid.Cid, error)

	Swarm Swarm
	Peers Peers // nil: the commands about peers say only who is connected
	Names Names // nil: there are no commands for names
	// Status tells what the daemon is doing, as a value for JSON; nil: there is
	// no command for it.
	Status func(ctx context.Context) (any, error)
	// Metrics answers GET /metrics; nil: nothing does.
	Metrics http.Handler
	Version string       // of the daemon
	Commit  string       // that it was built from
	Log     *slog.Logger // of failed requests; nil discards them
}

// NewHandler returns the handler of /api/v0/. The commands: version, id,
// swarm/peers, block/get, block/stat, block/put, cat, dag/import, dag/export,
// pin/add, pin/rm, pin/ls, repo/gc, repo/stat; with Peers swarm/bans and
// swarm/forgive, which Kubo has not; with Names name/publish, name/resolve,
// key/gen and key/list; with Status ipfs-stargz/status. Beside it is /metrics.
func NewHandler(c Config) http.Handler {
	h := &handler{Config: c}
	if h.Log == nil {
		h.Log = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	commands := map[string]command{
		"version":     h.version,
		"id":          h.id,
		"swarm/peers": h.peers,
		"block/get":   h.blockGet,
		"block/stat":  h.blockStat,
		"block/put":   h.blockPut,
		"cat":         h.cat,
		"dag/import":  h.dagImport,
		"dag/export":  h.dagExport,
		"pin/add":     h.pinAdd,
		"pin/rm":      h.pinRm,
		"pin/ls":      h.pinLs,
		"repo/gc":     h.repoGC,
		"repo/stat":   h.repoStat,
	}
	h.addPeers(commands)
	h.addNames(commands)
	if h.Status != nil {
		commands["ipfs-stargz/status"] = h.status
	}
	for name, run := range commands {
		mux.Handle("/api/v0/"+name, h.command(name, run))
	}
	if h.Metrics != nil {
		mux.HandleFunc("GET /metrics", h.serveMetrics)
	}
	return mux
}

type handler struct{ Config }

// command runs one request. An error that it returns before the first byte of
// the answer becomes Kubo's JSON error; after it, the trailer X-Stream-Error.
type command func(w http.ResponseWriter, r *http.Request) error

// errUsage marks an error as the caller's.
var errUsage = errors.New("bad request")

// Kubo's numbers for kinds of errors.
const (
	codeNormal = 0
	codeClient = 1
)

// streamError is the trailer of an answer that broke off.
const streamError = "X-Stream-Error"

func (h *handler) command(name string, run command) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "405 - Method Not Allowed", http.StatusMethodNotAllowed)
			return
		}
		if fromBrowser(r) {
			http.Error(w, "403 - Forbidden", http.StatusForbidden)
			return
		}
		if t := r.URL.Query().Get("timeout"); t != "" {
			d, err := time.ParseDuration(t)
			if err != nil {
				h.fail(w, name, fmt.Errorf("%w: timeout: %w", errUsage, err))
				return
			}
			ctx, cancel := context.WithTimeout(r.Context(), d)
			defer cancel()
			r = r.WithContext(ctx)
		}
		out := &answer{ResponseWriter: w}
		err := run(out, r)
		switch {
		case err == nil:
		case r.Context().Err() == context.Canceled:
			panic(http.ErrAbortHandler) // nobody listens
		case out.began:
			// A short answer that was not sent yet would be sent whole, without a
			// trailer.
			if err := http.NewResponseController(w).Flush(); err != nil {
				h.Log.Debug("an RPC answer was not taken", "command", name, "err", err)
			}
			w.Header().Set(http.TrailerPrefix+streamError, err.Error())
			h.Log.Warn("an RPC answer broke off", "command", name, "err", err)
		default:
			h.refuse(w, r, name, err)
		}
	})
}

// lingerTime is how long a client that was refused may go on sending.
const lingerTime = 5 * time.Second

// refuse answers with an error while the client may still be sending, and reads
// on for a while: else the connection would close under it, and it would take
// its own failure to send for the error.
func (h *handler) refuse(w http.ResponseWriter, r *http.Request, name string, reason error) {
	conn := http.NewResponseController(w)
	err := conn.EnableFullDuplex()
	h.fail(w, name, reason)
	if err == nil {
		err = errors.Join(conn.Flush(), conn.SetReadDeadline(time.Now().Add(lingerTime)))
	}
	if err == nil {
		_, err = io.Copy(io.Discard, r.Body)
	}
	if err != nil {
		h.Log.Debug("a refused request was not read to its end", "err", err)
	}
}

// fromBrowser tells whether a web page may be behind the request: Kubo refuses
// these too, unless it is configured to trust the page's origin.
func fromBrowser(r *http.Request) bool {
	return r.Header.Get("Origin") != "" || r.Header.Get("Referer") != "" ||
		strings.HasPrefix(r.UserAgent(), "Mozilla")
}

// fail answers with an error in Kubo's form.
func (h *handler) fail(w http.ResponseWriter, name string, err error) {
	status, code := http.StatusInternalServerError, codeNormal
	if errors.Is(err, errUsage) {
		status, code = http.StatusBadRequest, codeClient
	}
	h.Log.Warn("an RPC request failed", "command", name, "err", err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	h.encode(w, struct {
		Message string
		Code    int
		Type    string
	}{err.Error(), code, "error"})
}

// encode writes a line of JSON; who cannot receive it has gone.
func (h *handler) encode(w http.ResponseWriter, v any) {
	if err := json.NewEncoder(w).Encode(v); err != nil {
		h.Log.Debug("an RPC answer was not taken", "err", err)
	}
}

// reply is the answer of a command that has one value.
func (h *handler) reply(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	h.encode(w, v)
	return nil
}

// answer notes that the answer began.
type answer struct {
	http.ResponseWriter
	began bool
}

// Unwrap is for [http.ResponseController].
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func (a *answer) Write(p []byte) (int, error) {
	a.began = true
	return a.ResponseWriter.Write(p)
}

func (h *handler) version(w http.ResponseWriter, _ *http.Request) error {
	return h.reply(w, struct{ Version, Commit, Repo, System, Golang string }{
		h.Version, h.Commit, "", runtime.GOARCH + "/" + runtime.GOOS, runtime.Version(),
	})
}

func (h *handler) id(w http.ResponseWriter, _ *http.Request) error {
	return h.reply(w, struct {
		ID           string
		Addresses    []string
		AgentVersion string
	}{h.Swarm.ID(), h.Swarm.Addrs(), "ipfs-stargz/" + h.Version})
}

func (h *handler) peers(w http.ResponseWriter, _ *http.Request) error {
	type connected struct{ Addr, Peer string }
	list := []connected{}
	for _, full := range h.Swarm.PeersConnected() {
		addr, id, _ := strings.Cut(full, "/p2p/")
		list = append(list, connected{addr, id})
	}
	return h.reply(w, struct{ Peers []connected }{list})
}
