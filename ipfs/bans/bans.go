// Package bans remembers the peers that are not talked to any more, because
// they sent bytes that do not match what was asked for. The node's connection
// gater asks it in both directions; who finds a lie tells it.
package bans

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/atomicfile"
)

// Limits of what is remembered.
const (
	// Duration is how long a ban lasts.
	Duration = 7 * 24 * time.Hour

	maxBans   = 10_000 // those that end first go first
	maxReason = 500    // bytes
	maxFile   = 16 << 20
)

// ErrNotBanned is returned by Forgive for a peer that is not banned.
var ErrNotBanned = errors.New("peer is not banned")

// Bans is the list. It is safe for concurrent use. Use [Open].
type Bans struct {
	path string
	log  *slog.Logger
	save sync.Mutex // held while the file is written

	mu   sync.Mutex
	list map[peer.ID]ipfs.Ban
	drop func(peer.ID)
}

// Open reads the list at path; without the file it is empty. A file that cannot
// be understood is set aside, with an error in the log: every block is verified
// anyhow, and a node that does not start serves nobody.
func Open(path string, log *slog.Logger) (*Bans, error) {
	b := &Bans{path: path, log: log, list: make(map[peer.ID]ipfs.Ban)}
	raw, err := readLimited(path)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err == nil {
		b.list, err = parse(raw)
	}
	if err != nil {
		aside := path + ".damaged"
		if rerr := os.Rename(path, aside); rerr != nil {
			return nil, fmt.Errorf("bans: %s: %w", path, errors.Join(err, rerr))
		}
		log.Error("the list of banned peers is damaged; all are forgiven", "kept_at", aside, "err", err)
		b.list = make(map[peer.ID]ipfs.Ban)
	}
	return b, nil
}

func readLimited(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%d bytes: %w", info.Size(), ipfs.ErrTooLarge)
	}
	return os.ReadFile(path)
}

func parse(raw []byte) (map[peer.ID]ipfs.Ban, error) {
	var all []ipfs.Ban
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, err
	}
	if len(all) > maxBans {
		return nil, fmt.Errorf("%d bans: %w", len(all), ipfs.ErrTooLarge)
	}
	list := make(map[peer.ID]ipfs.Ban, len(all))
	for _, x := range all {
		id, err := peer.Decode(x.ID)
		if err != nil {
			return nil, fmt.Errorf("peer id %q: %w", x.ID, err)
		}
		x.ID = id.String()
		list[id] = x
	}
	return list, nil
}

// OnBan has drop called for each peer that is banned from now on, so that its
// connections end.
func (b *Bans) OnBan(drop func(peer.ID)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.drop = drop
}

// Ban bans a peer for [Duration] from now on, in memory at once and on disk
// when it returns; its connections are closed.
func (b *Bans) Ban(id peer.ID, reason string) {
	now := time.Now().Round(0)
	reason = strings.ToValidUTF8(reason[:min(len(reason), maxReason)], "")
	b.mu.Lock()
	b.list[id] = ipfs.Ban{ID: id.String(), Reason: reason, Since: now, Until: now.Add(Duration)}
	b.trim(now)
	drop := b.drop
	b.mu.Unlock()
	if drop != nil {
		drop(id)
	}
	if err := b.write(); err != nil {
		b.log.Error("a ban will be forgotten when the daemon stops", "peer", id.String(), "err", err)
	}
}

// trim removes what has ended, and what is too much.
func (b *Bans) trim(now time.Time) {
	for id, x := range b.list {
		if !x.Until.After(now) {
			delete(b.list, id)
		}
	}
	for len(b.list) > maxBans {
		var first peer.ID
		for id, x := range b.list {
			if first == "" || x.Until.Before(b.list[first].Until) {
				first = id
			}
		}
		delete(b.list, first)
	}
}

// Banned tells whether a peer is banned now.
func (b *Bans) Banned(id peer.ID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	x, ok := b.list[id]
	return ok && x.Until.After(time.Now())
}

// List returns the bans that hold, those that end last first.
func (b *Bans) List() []ipfs.Ban {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.trim(time.Now())
	out := make([]ipfs.Ban, 0, len(b.list))
	for _, x := range b.list {
		out = append(out, x)
	}
	slices.SortFunc(out, func(x, y ipfs.Ban) int {
		if c := y.Until.Compare(x.Until); c != 0 {
			return c
		}
		return strings.Compare(x.ID, y.ID)
	})
	return out
}

// Forgive ends the ban of a peer, or returns [ErrNotBanned].
func (b *Bans) Forgive(id peer.ID) error {
	b.mu.Lock()
	_, ok := b.list[id]
	delete(b.list, id)
	b.mu.Unlock()
	if !ok {
		return fmt.Errorf("%w: %s", ErrNotBanned, id)
	}
	return b.write()
}

func (b *Bans) write() error {
	b.save.Lock()
	defer b.save.Unlock()
	raw, err := json.MarshalIndent(b.List(), "", "  ")
	if err != nil {
		return fmt.Errorf("bans: %w", err)
	}
	if err := atomicfile.Write(b.path, raw, 0o600); err != nil {
		return fmt.Errorf("bans: %w", err)
	}
	return nil
}
