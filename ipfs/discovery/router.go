package discovery

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

// What is read of a router's answer.
const (
	maxRouterReply  = 1 << 20 // bytes
	maxRouterAddrs  = 32      // of one peer
	maxRouterErrors = 256     // bytes of what it says is wrong
)

// Media types of https://specs.ipfs.tech/routing/http-routing-v1/.
const (
	typeJSON   = "application/json"
	typeNDJSON = "application/x-ndjson"
	typeIPNS   = "application/vnd.ipfs.ipns-record"
)

// router is a delegated router: an HTTP server that is asked beside the DHT.
// (boxo has a client, too; it counts with opencensus, which starts a goroutine
// in every program that imports it.)
type router struct {
	url    string // with /routing/v1 at its end
	client *http.Client
}

func newRouter(url string) *router {
	url = strings.TrimSuffix(strings.TrimSuffix(url, "/"), "/routing/v1")
	return &router{url: url + "/routing/v1", client: &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment}}}
}

func (r *router) close() { r.client.CloseIdleConnections() }

// do returns the body of a good answer, at most so long; nil: not found.
func (r *router) do(ctx context.Context, method, path, accept string, body []byte) (_ io.ReadCloser, mediaType string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, r.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	req.Header.Set("User-Agent", "ipfs-stargz")
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	if body != nil {
		req.Header.Set("Content-Type", typeIPNS)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, "", err
	}
	switch resp.StatusCode {
	case http.StatusOK:
		mediaType, _, _ = mime.ParseMediaType(resp.Header.Get("Content-Type"))
		return struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxRouterReply), resp.Body}, mediaType, nil
	case http.StatusNotFound:
		return nil, "", resp.Body.Close()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxRouterErrors))
	if err != nil {
		return nil, "", err
	}
	return nil, "", fmt.Errorf("%s: %q", resp.Status, text)
}

// findProviders calls found for up to limit peers that the router says have the
// root.
func (r *router) findProviders(ctx context.Context, root cid.Cid, limit int, found func(peer.AddrInfo)) error {
	body, mediaType, err := r.do(ctx, http.MethodGet, "/providers/"+root.String(), typeNDJSON+", "+typeJSON, nil)
	if err != nil || body == nil {
		return err
	}
	defer body.Close()
	return readProviders(body, mediaType, limit, found)
}

// peerRecord is a record of the schema "peer", and of those before it that have
// the same fields.
type peerRecord struct {
	ID    string
	Addrs []string
}

func readProviders(body io.Reader, mediaType string, limit int, found func(peer.AddrInfo)) error {
	switch mediaType {
	case typeJSON:
		var all struct{ Providers []peerRecord }
		if err := json.NewDecoder(body).Decode(&all); err != nil {
			return err
		}
		for _, x := range all.Providers[:min(len(all.Providers), limit)] {
			x.give(found)
		}
		return nil
	case typeNDJSON:
		lines := bufio.NewScanner(body)
		for n := 0; n < limit && lines.Scan(); n++ {
			var x peerRecord
			if err := json.Unmarshal(lines.Bytes(), &x); err != nil {
				return err
			}
			x.give(found)
		}
		return lines.Err()
	}
	return fmt.Errorf("the answer is %.100q, want %s or %s", mediaType, typeJSON, typeNDJSON)
}

// give leaves out what cannot be understood: there are records of other kinds.
func (x peerRecord) give(found func(peer.AddrInfo)) {
	id, err := peer.Decode(x.ID)
	if err != nil {
		return
	}
	p := peer.AddrInfo{ID: id}
	for _, s := range x.Addrs[:min(len(x.Addrs), maxRouterAddrs)] {
		full, err := ma.NewMultiaddr(s)
		if err != nil {
			continue
		}
		if a, other := peer.SplitAddr(full); len(a) > 0 && (other == "" || other == id) {
			p.Addrs = append(p.Addrs, a)
		}
	}
	found(p)
}

// putValue gives a record of IPNS to the router.
func (r *router) putValue(ctx context.Context, key string, value []byte) error {
	name, err := ipns.NameFromRoutingKey([]byte(key))
	if err != nil {
		return err
	}
	body, _, err := r.do(ctx, http.MethodPut, "/ipns/"+name.String(), "", value)
	if err == nil && body == nil {
		err = errors.New("it takes no records")
	}
	if err != nil {
		return fmt.Errorf("router %s: %w", r.url, err)
	}
	return body.Close()
}

// getValue returns a record of IPNS that was verified.
func (r *router) getValue(ctx context.Context, key string) ([]byte, error) {
	name, err := ipns.NameFromRoutingKey([]byte(key))
	if err != nil {
		return nil, err
	}
	body, _, err := r.do(ctx, http.MethodGet, "/ipns/"+name.String(), typeIPNS, nil)
	if err != nil {
		return nil, fmt.Errorf("router %s: %w", r.url, err)
	}
	if body == nil {
		return nil, fmt.Errorf("router %s: no record", r.url)
	}
	defer body.Close()
	raw, err := io.ReadAll(io.LimitReader(body, int64(ipns.MaxRecordSize)+1))
	if err == nil && len(raw) > ipns.MaxRecordSize {
		err = ipfs.ErrTooLarge
	}
	if err == nil {
		err = ipns.Validator{}.Validate(key, raw)
	}
	if err != nil {
		return nil, fmt.Errorf("router %s: record: %w", r.url, err)
	}
	return raw, nil
}
