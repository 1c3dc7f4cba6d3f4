package bans

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/test"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

func open(t testing.TB, path string) *Bans {
	t.Helper()
	b, err := Open(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBanLastsOverARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banned.json")
	b := open(t, path)
	liar, other := test.RandPeerIDFatal(t), test.RandPeerIDFatal(t)
	var dropped []peer.ID
	b.OnBan(func(id peer.ID) { dropped = append(dropped, id) })
	b.Ban(liar, "wrong bytes")
	if !b.Banned(liar) || b.Banned(other) {
		t.Errorf("Banned: %v and %v", b.Banned(liar), b.Banned(other))
	}
	if len(dropped) != 1 || dropped[0] != liar {
		t.Errorf("dropped: %v", dropped)
	}

	b = open(t, path)
	if list := b.List(); len(list) != 1 || list[0].ID != liar.String() || list[0].Reason != "wrong bytes" || list[0].Until.Sub(list[0].Since) != Duration {
		t.Errorf("List: %+v", list)
	}
	if err := b.Forgive(liar); err != nil || b.Banned(liar) {
		t.Errorf("Forgive: %v, still banned: %v", err, b.Banned(liar))
	}
	if err := b.Forgive(liar); !errors.Is(err, ErrNotBanned) {
		t.Errorf("Forgive again: %v", err)
	}
	if list := open(t, path).List(); len(list) > 0 {
		t.Errorf("after forgiving and a restart: %+v", list)
	}
}

func TestBanEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, filepath.Join(t.TempDir(), "banned.json"))
		id := test.RandPeerIDFatal(t)
		b.Ban(id, "")
		time.Sleep(Duration - time.Second)
		if !b.Banned(id) {
			t.Error("it ended too soon")
		}
		time.Sleep(time.Second)
		if b.Banned(id) || len(b.List()) > 0 {
			t.Error("it did not end")
		}
	})
}

// Strangers can make any number of ids.
func TestBoundedInNumberAndText(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "banned.json"))
	now := time.Now()
	for i := range maxBans + 10 {
		id := peer.ID(fmt.Sprint(i))
		b.list[id] = ipfs.Ban{ID: id.String(), Until: now.Add(time.Hour + time.Duration(i))}
	}
	last := test.RandPeerIDFatal(t)
	b.Ban(last, strings.Repeat("ä", 1000))
	if len(b.list) != maxBans || !b.Banned(last) || b.Banned("0") {
		t.Errorf("%d bans; the last is in it: %v; the first still: %v", len(b.list), b.Banned(last), b.Banned("0"))
	}
	if r := b.list[last].Reason; len(r) > maxReason || !utf8.ValidString(r) {
		t.Errorf("a reason of %d bytes, valid: %v", len(r), utf8.ValidString(r))
	}
}

func TestDamagedFileIsSetAside(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "cut": `[{"id":`, "no peer id": `[{"id":"x"}]`, "another type": `{}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "banned.json")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			b := open(t, path)
			if len(b.List()) > 0 {
				t.Errorf("List: %v", b.List())
			}
			if got, err := os.ReadFile(path + ".damaged"); err != nil || string(got) != text {
				t.Errorf("set aside: %q, %v", got, err)
			}
			b.Ban(test.RandPeerIDFatal(t), "")
			if len(open(t, path).List()) != 1 {
				t.Error("a new ban was not kept")
			}
		})
	}
}

func TestConcurrentUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banned.json")
	b := open(t, path)
	var all sync.WaitGroup
	ids := make([]peer.ID, 20)
	for i := range ids {
		ids[i] = test.RandPeerIDFatal(t)
		all.Go(func() { b.Ban(ids[i], "") })
	}
	all.Wait()
	if n := len(open(t, path).List()); n != len(ids) {
		t.Errorf("%d bans on disk, want %d", n, len(ids))
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`[{"id":"12D3KooWGRUVh9GYUnyGFJBbcx3Bvw5mYqzKzUZqZ7eXMYyLCVgX","reason":"r","since":"2026-01-01T00:00:00Z","until":"2026-01-08T00:00:00Z"}]`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		list, err := parse(raw)
		for id, x := range list {
			if err != nil || x.ID != id.String() {
				t.Errorf("%q under %q, %v", x.ID, id, err)
			}
		}
	})
}
