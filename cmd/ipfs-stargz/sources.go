package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/config"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/chain"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/gateway"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/kubo"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/node"
)

// sources are where blocks come from.
type sources struct {
	ipfs.Blocks
	node    *node.Node
	chain   *chain.Chain // nil: there is only the node
	closers []io.Closer
}

// given tells what each source gave; the node, what its peers gave it.
func (s *sources) given() []chain.Given {
	stats := s.node.Stats()
	peers := chain.Given{Source: config.SourceNode, Blocks: stats.BlocksFetched, Bytes: stats.BytesFetched}
	if s.chain == nil {
		return []chain.Given{peers}
	}
	all := s.chain.Given()
	for i := range all {
		if all[i].Source == peers.Source {
			all[i] = peers
		}
	}
	return all
}

// Close closes the connections to all but the node.
func (s *sources) Close() error {
	var errs []error
	for _, c := range s.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// openSources returns the configured sources in the order of asking: the node
// alone, or a chain. It connects to none.
func openSources(cfg config.IPFS, n *node.Node, log *slog.Logger) (*sources, error) {
	s := &sources{Blocks: n, node: n}
	if len(cfg.Sources) == 1 {
		return s, nil // config.Check: it is the node
	}
	var links []chain.Source
	for _, name := range cfg.Sources {
		link := chain.Source{Name: name}
		switch name {
		case config.SourceNode:
			link.Blocks, link.Keep = n, n.Keep
		case config.SourceKubo:
			c, err := openKubo(cfg)
			if err != nil {
				return nil, errors.Join(fmt.Errorf("ipfs.kubo: %w", err), s.Close())
			}
			link.Blocks, s.closers = c, append(s.closers, c)
			log.Info("a Kubo daemon is a source of blocks", "address", c.Addr())
		case config.SourceGateway:
			c, err := gateway.New(gateway.Config{URLs: cfg.Gateway.URLs, Timeout: time.Duration(cfg.FetchTimeout), Log: log})
			if err != nil {
				return nil, errors.Join(fmt.Errorf("ipfs.gateway: %w", err), s.Close())
			}
			link.Blocks, s.closers = c, append(s.closers, c)
			log.Info("HTTP gateways are a source of blocks", "gateways", len(cfg.Gateway.URLs))
		}
		links = append(links, link)
	}
	c, err := chain.New(chain.Config{Sources: links, Patience: time.Duration(cfg.Patience), Log: log})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.Blocks, s.chain = c, c
	return s, nil
}

func openKubo(cfg config.IPFS) (*kubo.Client, error) {
	opts := []kubo.Option{kubo.External(), kubo.WithTimeout(time.Duration(cfg.FetchTimeout))}
	if cfg.Mode == config.ModePrivate {
		opts = append(opts, kubo.LoopbackOnly())
	}
	if cfg.Kubo.Address == "" {
		return kubo.NewLocal(opts...)
	}
	return kubo.New(cfg.Kubo.Address, opts...)
}

// reading is the node's store for our own commands: what it does not hold comes
// from all sources, as it does for layers.
type reading struct {
	*node.Node
	from ipfs.Blocks
}

// Get implements [ipfs.Blocks].
func (r reading) Get(ctx context.Context, w ipfs.Want, fn func(cid.Cid, []byte) error) error {
	return r.from.Get(ctx, w, fn)
}
