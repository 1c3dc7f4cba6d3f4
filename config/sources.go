package config

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"
)

// The sources of blocks that there are.
const (
	SourceNode    = "node"    // the embedded node: its store, and its peers
	SourceKubo    = "kubo"    // a Kubo daemon
	SourceGateway = "gateway" // trustless HTTP gateways
)

// The modes of privacy that there are.
const (
	ModePrivate = "private" // nobody learns of a CID but nodes that were named or have the key
	ModePublic  = "public"  // the whole IPFS network may be asked
)

// Kubo is a Kubo daemon as a source of blocks.
type Kubo struct {
	// Address is that of its RPC: a multiaddr or an http(s) URL, in which name
	// and password may stand. Empty: what $IPFS_PATH/api says, or ~/.ipfs/api.
	Address string `toml:"address"`
}

// Gateway is a set of trustless HTTP gateways as a source of blocks.
type Gateway struct {
	// URLs are theirs, without /ipfs/. Name and password may stand in them.
	URLs []string `toml:"urls"`
}

// checkSources returns what is wrong with the sources of blocks. No error holds
// an address whole: there may be a password in it.
func (c *IPFS) checkSources() error {
	if c.Mode != ModePrivate && c.Mode != ModePublic {
		return fmt.Errorf("ipfs.mode: %q is neither %s nor %s", c.Mode, ModePrivate, ModePublic)
	}
	for i, s := range c.Sources {
		switch s {
		case SourceNode, SourceKubo, SourceGateway:
		default:
			return fmt.Errorf("ipfs.sources: %q is none of %s, %s, %s", s, SourceNode, SourceKubo, SourceGateway)
		}
		if slices.Contains(c.Sources[:i], s) {
			return fmt.Errorf("ipfs.sources: %q is there twice", s)
		}
	}
	if !slices.Contains(c.Sources, SourceNode) {
		return fmt.Errorf("ipfs.sources: %q is missing: it has what was pushed here and what was fetched", SourceNode)
	}
	if c.Patience <= 0 {
		return fmt.Errorf("ipfs.patience: %v is not more than nothing", time.Duration(c.Patience))
	}
	if slices.Contains(c.Sources, SourceKubo) && c.Mode == ModePrivate && c.Kubo.Address != "" && !onThisMachine(c.Kubo.Address) {
		return fmt.Errorf("ipfs.kubo.address: it is not on this machine, and would learn which images are read here; give a unix socket or a loopback address, or set ipfs.mode = %q", ModePublic)
	}
	return c.checkGateways()
}

func (c *IPFS) checkGateways() error {
	for i, u := range c.Gateway.URLs {
		if !strings.HasPrefix(u, "https://") && !strings.HasPrefix(u, "http://") {
			return fmt.Errorf("ipfs.gateway.urls: number %d does not begin with https:// or http://", i+1)
		}
	}
	if !slices.Contains(c.Sources, SourceGateway) {
		return nil
	}
	if c.Mode == ModePrivate {
		return fmt.Errorf("ipfs.sources: %q tells HTTP gateways which images are read here, which mode %s does not allow; set ipfs.mode = %q, or take it out", SourceGateway, ModePrivate, ModePublic)
	}
	if len(c.Gateway.URLs) == 0 {
		return fmt.Errorf("ipfs.gateway.urls: no gateway is named, but ipfs.sources has %q", SourceGateway)
	}
	return nil
}

// onThisMachine tells whether a multiaddr or URL looks like one of this
// machine. The client looks again at what it connects to.
func onThisMachine(addr string) bool {
	addr = strings.TrimSpace(addr)
	if strings.HasPrefix(addr, "/unix/") {
		return true
	}
	var host string
	if u, err := url.Parse(addr); err == nil && u.Scheme != "" {
		host = u.Hostname()
	} else if parts := strings.Split(addr, "/"); len(parts) > 2 {
		host = parts[2]
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
