package node

import (
	"context"
	"sync"

	"github.com/ipfs/boxo/exchange"
)

// fetcher is a bitswap session.
type fetcher = exchange.Fetcher

// Limits on the sessions that are kept.
const (
	maxIdleSessions  = 16
	maxSessionBlocks = 8192 // a session remembers every CID it ever wanted
)

// sessions keeps bitswap sessions that are idle. One that found its peers asks
// them at once; a new one asks everybody who has the block first, which costs
// a round trip. A session serves one Get at a time, because when one caller
// leaves, bitswap cancels the want for the others in its session too.
type sessions struct {
	open func() (context.CancelFunc, fetcher)

	mu   sync.Mutex
	idle []*session
}

type session struct {
	fetcher
	cancel context.CancelFunc
	blocks int   // asked for so far
	losses int64 // of connections, before it was opened
}

// get returns a session for so many blocks. Those from before the last loss of a
// connection go: they may know only who has left, and would not look further.
func (s *sessions) get(blocks int, losses int64) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.idle) > 0 {
		last := s.idle[len(s.idle)-1]
		s.idle = s.idle[:len(s.idle)-1]
		if last.losses == losses && last.blocks < maxSessionBlocks {
			last.blocks += blocks
			return last
		}
		last.cancel()
	}
	cancel, f := s.open()
	return &session{fetcher: f, cancel: cancel, blocks: blocks, losses: losses}
}

// put gives a session back that has no wants left.
func (s *sessions) put(x *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.idle) == maxIdleSessions {
		x.cancel()
		return
	}
	s.idle = append(s.idle, x)
}

// drop ends a session.
func (s *sessions) drop(x *session) { x.cancel() }
