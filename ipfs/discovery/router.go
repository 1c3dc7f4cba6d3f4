package discovery

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/routing/http/client"
	"github.com/ipfs/boxo/routing/http/types"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// maxRouterReply is how many bytes of a router's answer are read.
const maxRouterReply = 1 << 20

// router is a delegated router: an HTTP server that is asked instead of the DHT
// (https://specs.ipfs.tech/routing/http-routing-v1/).
type router struct {
	url       string
	client    *client.Client
	transport *http.Transport
}

func newRouter(url string) (*router, error) {
	t := &http.Transport{Proxy: http.ProxyFromEnvironment}
	c, err := client.New(url,
		client.WithHTTPClient(&http.Client{Transport: &client.ResponseBodyLimitedTransport{
			RoundTripper: t, LimitBytes: maxRouterReply, UserAgent: "ipfs-stargz",
		}}),
		// Only what we can speak; "unknown" are records that do not say.
		client.WithProtocolFilter([]string{"unknown", "transport-bitswap"}))
	if err != nil {
		return nil, fmt.Errorf("discovery: router %s: %w", url, err)
	}
	return &router{url: url, client: c, transport: t}, nil
}

func (r *router) close() { r.transport.CloseIdleConnections() }

func (r *router) findProviders(ctx context.Context, root cid.Cid, limit int, found func(peer.AddrInfo)) error {
	it, err := r.client.FindProviders(ctx, root)
	if err != nil {
		return err
	}
	defer it.Close()
	for range limit {
		if !it.Next() {
			break
		}
		v := it.Val()
		if v.Err != nil {
			return v.Err
		}
		rec, ok := v.Val.(*types.PeerRecord)
		if !ok || rec.ID == nil {
			continue
		}
		p := peer.AddrInfo{ID: *rec.ID}
		for _, a := range rec.Addrs {
			if a.Multiaddr != nil {
				p.Addrs = append(p.Addrs, withoutID(a.Multiaddr))
			}
		}
		p.Addrs = slices.DeleteFunc(p.Addrs, func(a ma.Multiaddr) bool { return len(a) == 0 })
		found(p)
	}
	return ctx.Err()
}

func withoutID(a ma.Multiaddr) ma.Multiaddr {
	addr, _ := peer.SplitAddr(a)
	return addr
}

func (r *router) putValue(ctx context.Context, key string, value []byte) error {
	name, err := ipns.NameFromRoutingKey([]byte(key))
	if err != nil {
		return err
	}
	rec, err := ipns.UnmarshalRecord(value)
	if err != nil {
		return err
	}
	if err := r.client.PutIPNS(ctx, name, rec); err != nil {
		return fmt.Errorf("router %s: %w", r.url, err)
	}
	return nil
}

func (r *router) getValue(ctx context.Context, key string) ([]byte, error) {
	name, err := ipns.NameFromRoutingKey([]byte(key))
	if err != nil {
		return nil, err
	}
	rec, err := r.client.GetIPNS(ctx, name) // verifies it
	if err != nil {
		return nil, fmt.Errorf("router %s: %w", r.url, err)
	}
	return ipns.MarshalRecord(rec)
}
