package names

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/libp2p/go-libp2p/core/crypto"
)

// Times of renewing. Peers keep records in memory, so it is often.
const (
	renewEvery = time.Hour
	firstRetry = 5 * time.Second
	lastRetry  = 5 * time.Minute
)

// renew publishes the records of our keys again: soon after the start, every
// hour, and where nobody took one, soon and then ever more rarely.
func (n *Names) renew(ctx context.Context) {
	wait := firstRetry
	for {
		t := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-n.wake:
			t.Stop()
			wait = firstRetry
			continue
		case <-t.C:
		}
		if n.renewAll(ctx) {
			wait = renewEvery
		} else {
			wait = min(2*wait, lastRetry)
		}
	}
}

// renewAll tells whether all records were taken.
func (n *Names) renewAll(ctx context.Context) (all bool) {
	list, err := n.keys.list()
	if err != nil {
		n.c.Log.Error("the keys of names cannot be listed", "err", err)
		return false
	}
	all = true
	for _, k := range list {
		err := n.renewKey(ctx, k)
		switch {
		case err == nil, errors.Is(err, ErrNotFound):
		case ctx.Err() != nil:
			return false
		default:
			n.c.Log.Debug("a name was not published again yet", "key", k, "err", err)
			all = false
		}
	}
	return all
}

// renewKey gives the record of a key to others, with a new end. Its value and
// number stay.
func (n *Names) renewKey(ctx context.Context, key string) error {
	sk, err := n.keys.get(key)
	if err != nil {
		return err
	}
	id, err := nameOf(sk)
	if err != nil {
		return err
	}
	n.publishing.Lock()
	defer n.publishing.Unlock()
	before, err := n.kept(id)
	if err != nil {
		return err // nothing was published: ErrNotFound
	}
	raw := before.raw
	// A lifetime that was asked for longer than ours stays.
	if time.Until(before.until) < DefaultLifetime-renewEvery/2 {
		if raw, err = n.resign(sk, id, before); err != nil {
			return err
		}
	}
	return n.c.Records.PutValue(ctx, string(id.RoutingKey()), raw)
}

func (n *Names) resign(sk crypto.PrivKey, id ipns.Name, before record) ([]byte, error) {
	p, err := ipfsPath(before.value)
	if err != nil {
		return nil, err
	}
	return n.sign(sk, id, p, before.seq, PublishOptions{Lifetime: DefaultLifetime, TTL: before.ttl})
}
