// Package names is IPNS: a name is the hash of a key, and whoever has the key
// signs what the name stands for now. Records are kept by the node's DHT
// ([Records]) for others, and here, so that sequence numbers never go back and
// a name still resolves when nobody answers.
//
// See https://specs.ipfs.tech/ipns/ipns-record/.
package names

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/path"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Defaults of records.
const (
	// DefaultLifetime is how long a record is valid; it is renewed every hour.
	DefaultLifetime = 48 * time.Hour
	// DefaultTTL is for how long a resolved name need not be asked for again.
	// (Other software takes five minutes; an image that was pushed is pulled
	// at once.)
	DefaultTTL = time.Minute

	maxLifetime = 365 * 24 * time.Hour
	maxCached   = 4096
)

var (
	// ErrBadName is returned for what is not the hash of a key.
	ErrBadName = errors.New("not a name of IPNS (k51…)")
	// ErrNotFound is returned for a name that nobody knows.
	ErrNotFound = errors.New("nobody knows the name")
	// ErrNotPublished is returned when a record was made and kept, but nobody
	// took it yet.
	ErrNotPublished = errors.New("the record is kept and will be published when a peer is there")
)

// Records is where records are put for others, and got from them. What it
// returns is verified here.
type Records interface {
	PutValue(ctx context.Context, key string, value []byte) error
	GetValue(ctx context.Context, key string) ([]byte, error)
}

// Config is what [Open] needs.
type Config struct {
	Dir     string         // keys go to Dir/keystore, records to Dir/names
	Self    crypto.PrivKey // the key named "self", the node's own
	Records Records
	Log     *slog.Logger
}

// Names publishes and resolves. It is safe for concurrent use. Use [Open].
type Names struct {
	c      Config
	keys   *keystore
	dir    string
	cancel context.CancelFunc
	done   sync.WaitGroup
	wake   chan struct{}

	publishing sync.Mutex // held where sequence numbers are made
	mu         sync.Mutex
	fresh      map[ipns.Name]time.Time // until when a kept record needs no asking
}

// Open opens the keys and records below a directory, and renews the records of
// our own keys from then on.
func Open(c Config) (*Names, error) {
	n := &Names{c: c, dir: filepath.Join(c.Dir, "names"), fresh: make(map[ipns.Name]time.Time), wake: make(chan struct{}, 1)}
	var err error
	if n.keys, err = openKeystore(filepath.Join(c.Dir, "keystore"), c.Self); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return nil, fmt.Errorf("names: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	n.done.Go(func() { n.renew(ctx) })
	return n, nil
}

// Close ends the renewing.
func (n *Names) Close() {
	n.cancel()
	n.done.Wait()
}

// Key is a key of ours.
type Key struct {
	Name string // by which it is called here
	ID   string // the IPNS name, "k51…"
}

// GenerateKey makes an ed25519 key. It returns [ErrKeyExists] if there is one.
func (n *Names) GenerateKey(name string) (Key, error) {
	sk, err := n.keys.generate(name)
	if err != nil {
		return Key{}, err
	}
	id, err := nameOf(sk)
	return Key{Name: name, ID: id.String()}, err
}

// Keys returns the keys by name, "self" first.
func (n *Names) Keys() ([]Key, error) {
	list, err := n.keys.list()
	if err != nil {
		return nil, err
	}
	out := make([]Key, 0, len(list))
	for _, k := range list {
		sk, err := n.keys.get(k)
		if err != nil {
			return nil, err
		}
		id, err := nameOf(sk)
		if err != nil {
			return nil, err
		}
		out = append(out, Key{Name: k, ID: id.String()})
	}
	return out, nil
}

// PublishOptions are those of [Names.Publish].
type PublishOptions struct {
	Key      string        // by its name or id; default "self"
	Lifetime time.Duration // default [DefaultLifetime], at most a year
	TTL      time.Duration // default [DefaultTTL]
}

// Publish has the name of a key stand for a path ("/ipfs/CID"), and returns the
// name. When nobody took the record in a bounded time, the error is
// [ErrNotPublished] and the name is returned all the same.
func (n *Names) Publish(ctx context.Context, value string, o PublishOptions) (name string, err error) {
	if o.Key == "" {
		o.Key = selfKey
	}
	if o.Lifetime == 0 {
		o.Lifetime = DefaultLifetime
	}
	if o.TTL == 0 {
		o.TTL = DefaultTTL
	}
	if o.Lifetime < 0 || o.TTL < 0 || o.Lifetime > maxLifetime || o.TTL > o.Lifetime {
		return "", fmt.Errorf("names: a lifetime of %v with a TTL of %v: want 0 < TTL <= lifetime <= %v", o.Lifetime, o.TTL, maxLifetime)
	}
	p, err := ipfsPath(value)
	if err != nil {
		return "", err
	}
	sk, err := n.keys.get(o.Key)
	if err != nil {
		return "", err
	}
	id, err := nameOf(sk)
	if err != nil {
		return "", err
	}
	if err := n.publish(ctx, sk, id, p, o); err != nil {
		return id.String(), err
	}
	return id.String(), nil
}

func (n *Names) publish(ctx context.Context, sk crypto.PrivKey, id ipns.Name, p path.Path, o PublishOptions) error {
	n.publishing.Lock()
	defer n.publishing.Unlock()
	// The key may be in use on another machine, too, or this one was restored.
	if raw, err := n.c.Records.GetValue(ctx, string(id.RoutingKey())); err == nil {
		if _, err := n.learn(id, raw); err != nil {
			n.c.Log.Debug("a record of ours from others is not used", "name", id.String(), "err", err)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	seq := uint64(0)
	if before, err := n.kept(id); err == nil {
		seq = before.seq
		if before.value != p.String() {
			seq++
		}
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	raw, err := n.sign(sk, id, p, seq, o)
	if err != nil {
		return err
	}
	return n.put(ctx, id, raw)
}

// sign makes a record and keeps it before anybody sees it: no two records ever
// have one sequence number and different values.
func (n *Names) sign(sk crypto.PrivKey, id ipns.Name, p path.Path, seq uint64, o PublishOptions) ([]byte, error) {
	rec, err := ipns.NewRecord(sk, p, seq, time.Now().Add(o.Lifetime), o.TTL)
	if err != nil {
		return nil, fmt.Errorf("names: new record: %w", err)
	}
	raw, err := ipns.MarshalRecord(rec)
	if err != nil {
		return nil, fmt.Errorf("names: new record: %w", err)
	}
	if err := n.keep(id, raw); err != nil {
		return nil, err
	}
	n.mark(id, time.Now().Add(o.TTL))
	return raw, nil
}

func (n *Names) put(ctx context.Context, id ipns.Name, raw []byte) error {
	err := n.c.Records.PutValue(ctx, string(id.RoutingKey()), raw)
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	select {
	case n.wake <- struct{}{}:
	default:
	}
	return fmt.Errorf("names: %s: %w: %w", id, ErrNotPublished, err)
}

// Resolved is what a name stands for.
type Resolved struct {
	Value    string    // "/ipfs/CID", perhaps with a path
	Sequence uint64    // grows whenever the value changes
	Until    time.Time // the record's end
	// Stale says that nobody answered: it is the last record known here, which
	// is still valid.
	Stale bool
}

// Resolve returns what a name stands for: "k51…", with or without "ipns://" or
// "/ipns/". What was resolved is not asked for again for the time that its
// publisher says. A record that is forged, older than the last one known, or
// past its end is never used; when nobody answers, the last one known is, until
// its end, with a warning in the log.
func (n *Names) Resolve(ctx context.Context, name string) (Resolved, error) {
	id, err := parseName(name)
	if err != nil {
		return Resolved{}, err
	}
	if n.isFresh(id) {
		if r, err := n.kept(id); err == nil && r.until.After(time.Now()) {
			return r.resolved(false), nil
		}
	}
	raw, err := n.c.Records.GetValue(ctx, string(id.RoutingKey()))
	if ctx.Err() != nil {
		return Resolved{}, ctx.Err()
	}
	if err == nil {
		var r record
		if r, err = n.learn(id, raw); err == nil {
			n.mark(id, time.Now().Add(r.ttl))
			return r.resolved(false), nil
		}
	}
	last, lastErr := n.kept(id)
	switch {
	case lastErr == nil && last.until.After(time.Now()):
		n.c.Log.Warn("nobody has a record of a name; the last one known is used", "name", id.String(),
			"value", last.value, "valid_until", last.until, "err", err)
		return last.resolved(true), nil
	case lastErr == nil:
		return Resolved{}, fmt.Errorf("names: %s: %w, and the last record known here ended on %v; publish it again: %w", id, ErrNotFound, last.until.Format(time.RFC3339), err)
	}
	return Resolved{}, fmt.Errorf("names: %s: %w; see whether the node that published it is connected (`ipfs-stargz peers`): %w", id, ErrNotFound, err)
}

// learn verifies a record from others and returns the better of it and the one
// kept. The result is kept.
func (n *Names) learn(id ipns.Name, raw []byte) (record, error) {
	r, err := parseRecord(id, raw)
	if err != nil {
		return record{}, err
	}
	before, err := n.kept(id)
	if err == nil && before.until.After(time.Now()) {
		best, err := ipns.Validator{}.Select("", [][]byte{raw, before.raw})
		if err != nil {
			return record{}, fmt.Errorf("names: %s: %w", id, err)
		}
		if best != 0 {
			return before, nil
		}
	}
	if err == nil && before.seq > r.seq {
		return record{}, fmt.Errorf("names: %s: a record with number %d came after one with %d", id, r.seq, before.seq)
	}
	if err == nil && string(before.raw) == string(raw) {
		return r, nil
	}
	return r, n.keep(id, raw)
}

func (n *Names) isFresh(id ipns.Name) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fresh[id].After(time.Now())
}

func (n *Names) mark(id ipns.Name, until time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.fresh) >= maxCached {
		clear(n.fresh)
	}
	n.fresh[id] = until
}

func parseName(s string) (ipns.Name, error) {
	s = strings.TrimPrefix(s, "ipns://")
	s = strings.TrimPrefix(s, ipns.NamespacePrefix)
	id, err := ipns.NameFromString(s)
	if err != nil {
		return id, fmt.Errorf("names: %.100q: %w (names of the DNS are not resolved)", s, ErrBadName)
	}
	return id, nil
}

// ipfsPath reads the value of a record.
func ipfsPath(s string) (path.Path, error) {
	p, err := path.NewPath(s)
	if err != nil {
		return nil, fmt.Errorf("names: value %.100q: %w", s, err)
	}
	if p.Namespace() != path.IPFSNamespace {
		return nil, fmt.Errorf("names: value %.100q: want /ipfs/CID", s)
	}
	return p, nil
}

func nameOf(sk crypto.PrivKey) (ipns.Name, error) {
	id, err := peer.IDFromPrivateKey(sk)
	if err != nil {
		return ipns.Name{}, fmt.Errorf("names: %w", err)
	}
	return ipns.NameFromPeer(id), nil
}
