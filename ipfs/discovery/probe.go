package discovery

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	corepnet "github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/p2p/net/pnet"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	mss "github.com/multiformats/go-multistream"
)

// prober learns the peer id of who answers at an address: it does the security
// handshake and hangs up. It shows an identity of its own, made for nothing
// else, so that an address in wrong hands does not learn ours.
type prober struct {
	key   corepnet.PSK // nil: no swarm key
	noise *noise.SessionTransport
}

func newProber(key corepnet.PSK) (*prober, error) {
	id, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	t, err := noise.New(noise.ID, id, nil)
	if err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	s, err := t.WithSessionOptions(noise.DisablePeerIDCheck())
	if err != nil {
		return nil, fmt.Errorf("discovery: %w", err)
	}
	return &prober{key: key, noise: s}, nil
}

// whoIs returns the id of the peer at an address of IP and TCP. With a swarm
// key only who has it, too, gives an answer.
func (p *prober) whoIs(ctx context.Context, a ma.Multiaddr) (_ peer.ID, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("discovery: who is at %s: %w", a, err)
		}
	}()
	raw, err := (&manet.Dialer{}).DialContext(ctx, a)
	if err != nil {
		return "", err
	}
	defer raw.Close()
	if end, ok := ctx.Deadline(); ok {
		if err := raw.SetDeadline(end); err != nil {
			return "", err
		}
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	conn := net.Conn(raw)
	if p.key != nil {
		if conn, err = pnet.NewProtectedConn(p.key, conn); err != nil {
			return "", err
		}
	}
	if err := mss.SelectProtoOrFail(p.noise.ID(), conn); err != nil {
		return "", err
	}
	secure, err := p.noise.SecureOutbound(ctx, conn, "")
	if err != nil {
		return "", err
	}
	return secure.RemotePeer(), secure.Close()
}
