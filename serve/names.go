package serve

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/names"
)

// Names is what the RPC needs for names of IPNS.
type Names interface {
	Publish(ctx context.Context, value string, o names.PublishOptions) (name string, err error)
	Resolve(ctx context.Context, name string) (names.Resolved, error)
	GenerateKey(name string) (names.Key, error)
	Keys() ([]names.Key, error)
}

func (h *handler) addNames(commands map[string]command) {
	if h.Names != nil {
		commands["name/publish"] = h.namePublish
		commands["name/resolve"] = h.nameResolve
		commands["key/gen"] = h.keyGen
		commands["key/list"] = h.keyList
	}
}

// argument returns the argument that a command cannot do without.
func argument(q url.Values, what string) (string, error) {
	if s := q.Get("arg"); s != "" {
		return s, nil
	}
	return "", fmt.Errorf("%w: argument %q is required", errUsage, what)
}

// namePublish answers name/publish: arg, key, lifetime, ttl, allow-offline.
func (h *handler) namePublish(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	value, err := argument(q, "ipfs-path")
	if err != nil {
		return err
	}
	o := names.PublishOptions{Key: q.Get("key")}
	for _, d := range []struct {
		name string
		to   *time.Duration
	}{{"lifetime", &o.Lifetime}, {"ttl", &o.TTL}} {
		if s := q.Get(d.name); s != "" {
			if *d.to, err = time.ParseDuration(s); err != nil {
				return fmt.Errorf("%w: %s: %w", errUsage, d.name, err)
			}
		}
	}
	name, err := h.Names.Publish(r.Context(), value, o)
	later := errors.Is(err, names.ErrNotPublished)
	if err != nil && (!later || q.Get("allow-offline") != "true") {
		return err
	}
	return h.reply(w, struct {
		Name, Value string
		Later       bool `json:",omitempty"` // ours: nobody took it yet
	}{name, value, later})
}

// nameResolve answers name/resolve. Kubo's arguments that choose how hard to
// look are taken and change nothing.
func (h *handler) nameResolve(w http.ResponseWriter, r *http.Request) error {
	name, err := argument(r.URL.Query(), "name")
	if err != nil {
		return err
	}
	v, err := h.Names.Resolve(r.Context(), name)
	if err != nil {
		return err
	}
	return h.reply(w, struct {
		Path  string
		Stale bool `json:",omitempty"` // ours: the last record known here
	}{v.Value, v.Stale})
}

// key is a key in Kubo's form.
type key struct {
	Name string
	ID   string `json:"Id"`
}

// keyGen answers key/gen. Keys are ed25519.
func (h *handler) keyGen(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	name, err := argument(q, "name")
	if err != nil {
		return err
	}
	if t := q.Get("type"); t != "" && t != "ed25519" {
		return fmt.Errorf("%w: type %q: keys are ed25519", errUsage, t)
	}
	k, err := h.Names.GenerateKey(name)
	if err != nil {
		return err
	}
	return h.reply(w, key{k.Name, k.ID})
}

// keyList answers key/list.
func (h *handler) keyList(w http.ResponseWriter, _ *http.Request) error {
	all, err := h.Names.Keys()
	if err != nil {
		return err
	}
	list := []key{}
	for _, k := range all {
		list = append(list, key{k.Name, k.ID})
	}
	return h.reply(w, struct{ Keys []key }{list})
}
