package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

const (
	maxRacing = 3 // gateways that are asked for one block at once
	maxTries  = 3 // of one gateway for one block, while it fails
)

// race is the search for one block.
type race struct {
	*Client
	c     cid.Cid
	kind  class
	tries map[*server]int    // how often each may still be asked
	at    map[*server]bool   // those that are asked now
	said  map[*server]string // why each did not give it
}

// answer is what one gateway said: the block, or a *refusal.
type answer struct {
	from *server
	data []byte
	err  error
}

// block gets a block from whichever gateway gives it first: one is asked, the
// next when it fails, or too when it takes longer than usual.
func (g *Client) block(ctx context.Context, c cid.Cid, kind class) ([]byte, error) {
	r := &race{Client: g, c: c, kind: kind, tries: map[*server]int{}, at: map[*server]bool{}, said: map[*server]string{}}
	for _, s := range g.servers {
		r.tries[s] = maxTries
	}
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer, len(g.servers)) // each is asked once at a time
	hedge, rested := stopped(), stopped()
	defer hedge.Stop()
	defer rested.Stop()
	for want := 1; ; {
		var next choice
		rested.Stop()
		for len(r.at) < want {
			if next = r.choose(time.Now()); next.server == nil {
				break
			}
			s := next.server
			asking.Go(func() { answers <- r.ask(ctx, s) })
			hedge.Reset(next.hedge)
		}
		if len(r.at) == 0 && !next.later {
			return nil, r.unavailable()
		}
		if next.rest > 0 {
			rested.Reset(next.rest)
		}
		select {
		case a := <-answers:
			delete(r.at, a.from)
			if a.err == nil {
				return a.data, nil
			}
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			r.refused(a)
		case <-hedge.C:
			want = min(len(r.at)+1, maxRacing)
		case <-rested.C:
		case <-next.room:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// stopped returns a timer that does not run.
func stopped() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// choice is the gateway to ask next, or what to wait for until there is one.
type choice struct {
	server *server
	hedge  time.Duration // after which it is slower than usual
	later  bool          // there is none now, but there may be
	rest   time.Duration // until one that is left alone may be asked; 0: there is none
	room   <-chan struct{}
}

// choose takes a slot of the gateway that is likely to answer first.
func (r *race) choose(now time.Time) choice {
	r.mu.Lock()
	defer r.mu.Unlock()
	var c choice
	var best time.Duration
	for _, s := range r.servers {
		if s.lied || r.at[s] || r.tries[s] == 0 {
			continue
		}
		if rest := s.until.Sub(now); rest > 0 {
			if s.told && rest <= r.timeout || rest <= waitForTired {
				c.later = true
				if c.rest == 0 || rest < c.rest {
					c.rest = rest
				}
			}
			continue
		}
		if s.busy[r.kind] >= r.slots[r.kind] {
			c.later, c.room = true, r.changed
			continue
		}
		if t := s.expect(r.kind, r.slots, now); c.server == nil || t < best {
			c.server, best = s, t
		}
	}
	if c.server == nil {
		return c
	}
	c.server.busy[r.kind]++
	r.tries[c.server]--
	r.at[c.server] = true
	return choice{server: c.server, hedge: c.server.hedge(r.kind)}
}

// ask asks one gateway, verifies what it sends, and counts how it did.
func (r *race) ask(ctx context.Context, s *server) answer {
	limited, cancel := context.WithTimeout(ctx, r.timeout/2)
	defer cancel()
	began := time.Now()
	data, err := s.get(limited, r.c)
	if err == nil && ipfs.Verify(r.c, data) != nil {
		err = &refusal{why: "it sent wrong bytes", lied: true}
	}
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		err = &refusal{why: fmt.Sprintf("no whole answer within %v", r.timeout/2), again: true, fault: true}
	}
	r.count(ctx, s, began, err)
	return answer{from: s, data: data, err: err}
}

// count gives the slot back and notes how the gateway did.
func (r *race) count(ctx context.Context, s *server, began time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.busy[r.kind]--
	close(r.changed)
	r.changed = make(chan struct{})
	now := time.Now()
	var no *refusal
	switch {
	case err == nil:
		s.took(now.Sub(began), now)
	case ctx.Err() != nil || !errors.As(err, &no):
		s.tookLonger(now.Sub(began), now)
	case no.lied:
		if !s.lied {
			s.lied = true
			r.log.Warn("a gateway sent wrong bytes and is not asked any more", "gateway", s.url, "cid", r.c.String())
		}
	case no.fault:
		s.fail(no.why, began, now, no.wait)
	default:
		s.tookLonger(now.Sub(began), now)
		s.answered()
	}
}

// refused notes why a gateway did not give the block.
func (r *race) refused(a answer) {
	r.said[a.from] = a.err.Error()
	var no *refusal
	if !errors.As(a.err, &no) || !no.again {
		r.tries[a.from] = 0
	}
}

// unavailable is the error for a block that no gateway gave.
func (r *race) unavailable() error {
	return &ipfs.UnavailableError{CIDs: []cid.Cid{r.c}, Asked: r.describe(r.said), Hint: hint}
}

// states describes the gateways when it is too late for answers.
func (g *Client) states() []string { return g.describe(nil) }

// describe names each gateway and what it said, or what is known of it.
func (g *Client) describe(said map[*server]string) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	out := make([]string, len(g.servers))
	for i, s := range g.servers {
		out[i] = s.url
		why := said[s]
		if why == "" || s.told && now.Before(s.until) {
			why = s.state(now)
		}
		if why != "" {
			out[i] += " (" + why + ")"
		}
	}
	return out
}
