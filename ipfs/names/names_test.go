package names

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/path"
)

// One node publishes, another follows.
func TestNameFollowsAPush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork()
		a, b := open(t, "", net), open(t, "", net)
		defer a.Close()
		defer b.Close()
		key, err := a.GenerateKey("web")
		if err != nil {
			t.Fatal(err)
		}
		name := publish(t, a, first, PublishOptions{Key: "web"})
		if name != key.ID || !strings.HasPrefix(name, "k51") {
			t.Errorf("the name is %s, the key's id %s", name, key.ID)
		}
		for _, form := range []string{name, "ipns://" + name, "/ipns/" + name} {
			if r := wantValue(t, b, form, first); r.Sequence != 0 || r.Stale || time.Until(r.Until) > DefaultLifetime {
				t.Errorf("resolved: %+v", r)
			}
		}
		if _, gets := net.counts(); gets != 2 { // one before publishing, one of three
			t.Errorf("asked %d times, want 2", gets)
		}
		// The same again is a new end, and no new number.
		publish(t, a, first, PublishOptions{Key: "web"})
		publish(t, a, second, PublishOptions{Key: key.ID}) // a key by its id
		wantValue(t, b, name, first)                       // for a while
		time.Sleep(DefaultTTL)
		if r := wantValue(t, b, name, second); r.Sequence != 1 {
			t.Errorf("resolved: %+v", r)
		}
		wantValue(t, a, name, second) // one's own at once
		if self := publish(t, a, first, PublishOptions{}); self == name {
			t.Error("the key self is the key web")
		}
	})
}

// When nobody answers, what is known is used until its end, and said to be so.
func TestLastKnownRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, dir := newNetwork(), t.TempDir()
		a, b := open(t, "", net), open(t, dir, net)
		name := publish(t, a, first, PublishOptions{})
		wantValue(t, b, name, first)
		a.Close()
		b.Close()
		b = open(t, dir, net)
		defer b.Close()
		net.change(func() { net.alone = true })
		time.Sleep(DefaultLifetime - 2*time.Hour)
		if r := wantValue(t, b, name, first); !r.Stale {
			t.Errorf("resolved: %+v, want it stale", r)
		}
		time.Sleep(3 * time.Hour)
		if r, err := b.Resolve(t.Context(), name); !errors.Is(err, ErrNotFound) || !errors.Is(err, errAlone) || !strings.Contains(err.Error(), "ended") {
			t.Errorf("after its end: %+v, %v", r, err)
		}
		// A record that has ended is not used if others still have it.
		net.change(func() { net.alone = false })
		if r, err := b.Resolve(t.Context(), name); !errors.Is(err, ErrNotFound) {
			t.Errorf("an old record from others: %+v, %v", r, err)
		}
		if r, err := open2(t, net).Resolve(t.Context(), name); !errors.Is(err, ErrNotFound) || !errors.Is(err, ipns.ErrExpiredRecord) {
			t.Errorf("an old record from others, who knows none: %+v, %v", r, err)
		}
	})
}

// open2 is open, for the time of the test.
func open2(t testing.TB, net *network) *Names {
	n := open(t, "", net)
	n.Close()
	return n
}

// Old records are signed, too: they must not bring an old image back.
func TestReplayedRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork()
		a, b := open2(t, net), open2(t, net)
		name := publish(t, a, first, PublishOptions{Lifetime: 300 * time.Hour})
		id, err := parseName(name)
		if err != nil {
			t.Fatal(err)
		}
		old := net.record(id)
		publish(t, a, second, PublishOptions{})
		wantValue(t, b, name, second)
		net.change(func() { net.all[string(id.RoutingKey())] = old })
		time.Sleep(time.Hour)
		wantValue(t, b, name, second)
		// The publisher is told the old one, too, and counts on from its own.
		publish(t, a, first, PublishOptions{})
		time.Sleep(DefaultTTL)
		if r := wantValue(t, b, name, first); r.Sequence != 2 {
			t.Errorf("resolved: %+v", r)
		}
		// And not even when the newer one has ended.
		net.change(func() { net.all[string(id.RoutingKey())] = old })
		time.Sleep(100 * time.Hour)
		if r, err := b.Resolve(t.Context(), name); err == nil {
			t.Errorf("the old record won: %+v", r)
		}
	})
}

// The key is used on two machines, or one was restored from a backup.
func TestNumberOfOthersIsCountedOn(t *testing.T) {
	net, dir := newNetwork(), t.TempDir()
	a := open(t, dir, net)
	if _, err := a.GenerateKey("web"); err != nil {
		t.Fatal(err)
	}
	publish(t, a, first, PublishOptions{Key: "web"})
	publish(t, a, second, PublishOptions{Key: "web"})
	a.Close()
	if err := os.RemoveAll(filepath.Join(dir, "names")); err != nil {
		t.Fatal(err)
	}
	a = open(t, dir, net)
	defer a.Close()
	name := publish(t, a, first, PublishOptions{Key: "web"})
	if r := wantValue(t, a, name, first); r.Sequence != 2 {
		t.Errorf("resolved: %+v, want number 2", r)
	}
}

func TestForgedRecords(t *testing.T) {
	net := newNetwork()
	a, b := open2(t, net), open2(t, net)
	name := publish(t, a, first, PublishOptions{})
	id, err := parseName(name)
	if err != nil {
		t.Fatal(err)
	}
	good := net.record(id)
	p, err := path.NewPath(second)
	if err != nil {
		t.Fatal(err)
	}
	another, err := ipns.NewRecord(newKey(t), p, 9, time.Now().Add(time.Hour), 0, ipns.WithPublicKey(true))
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := ipns.MarshalRecord(another)
	if err != nil {
		t.Fatal(err)
	}
	flipped := slices.Clone(good)
	flipped[len(flipped)/2] ^= 1
	for what, raw := range map[string][]byte{
		"another's": foreign, "changed": flipped, "cut": good[:50], "nonsense": []byte("nonsense"),
		"too long": bytes.Repeat([]byte{0}, ipns.MaxRecordSize+1),
	} {
		net.change(func() { net.all[string(id.RoutingKey())] = raw })
		if r, err := b.Resolve(t.Context(), name); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %+v, %v", what, r, err)
		}
	}
	net.change(func() { net.all[string(id.RoutingKey())] = good })
	wantValue(t, b, name, first)
}

// Records are renewed while the node runs, and those that nobody took are
// published when somebody is there.
func TestRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, dir := newNetwork(), t.TempDir()
		a := open(t, dir, net)
		net.change(func() { net.alone = true })
		if _, err := a.GenerateKey("web"); err != nil {
			t.Fatal(err)
		}
		name, err := a.Publish(t.Context(), first, PublishOptions{Key: "web"})
		if !errors.Is(err, ErrNotPublished) || !errors.Is(err, errAlone) || name == "" {
			t.Fatalf("alone: %q, %v", name, err)
		}
		wantValue(t, a, name, first)
		net.change(func() { net.alone = false })
		time.Sleep(lastRetry)
		b := open2(t, net)
		before := wantValue(t, b, name, first)
		time.Sleep(60 * time.Hour)
		after := wantValue(t, b, name, first)
		if !after.Until.After(before.Until) || after.Sequence != 0 {
			t.Errorf("not renewed: %+v, then %+v", before, after)
		}
		a.Close()
		puts, _ := net.counts()
		if puts < 55 || puts > 70 {
			t.Errorf("published %d times in 60 hours, want about 60", puts)
		}
		// After a restart, too.
		a = open(t, dir, net)
		defer a.Close()
		time.Sleep(time.Minute)
		if again, _ := net.counts(); again != puts+1 {
			t.Errorf("published %d times after a restart, want once", again-puts)
		}
	})
}

func TestRefusals(t *testing.T) {
	net := newNetwork()
	n := open2(t, net)
	for value, o := range map[string]PublishOptions{
		"":                     {},
		"bafkrei":              {},
		"/ipns/" + first[6:]:   {},
		first + "/../..":       {Key: "none"},
		second + "/a":          {Key: "../self"},
		second + "/b":          {Key: "k51qzi5uqu5dgutdk6i1ynyzgkqngpha5xpgia3a5qqp4jsh0u4csozksxel2r"},
		second + "/negative":   {Lifetime: -time.Hour},
		second + "/century":    {Lifetime: 100 * 365 * 24 * time.Hour},
		second + "/ttl":        {TTL: 1000 * time.Hour},
		second + "/lessttl":    {TTL: -1},
		second + "/emptyish k": {Key: strings.Repeat("k", 200)},
	} {
		if name, err := n.Publish(t.Context(), value, o); err == nil {
			t.Errorf("Publish %q with %+v: %q", value, o, name)
		}
	}
	for _, name := range []string{"", "example.com", "/ipfs/" + first[6:], strings.Repeat("k", 10000)} {
		if r, err := n.Resolve(t.Context(), name); !errors.Is(err, ErrBadName) {
			t.Errorf("Resolve %.50q: %+v, %v", name, r, err)
		}
	}
	if r, err := n.Resolve(t.Context(), "12D3KooWQQe2yFFNE4iqMz1HFBhd2CGN4f5XD9MgB4YNBLyjsqt8"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Resolve of what nobody published: %+v, %v", r, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Publish(ctx, first, PublishOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Publish with a context that has ended: %v", err)
	}
	if _, err := n.Resolve(ctx, "12D3KooWQQe2yFFNE4iqMz1HFBhd2CGN4f5XD9MgB4YNBLyjsqt8"); !errors.Is(err, context.Canceled) {
		t.Errorf("Resolve with a context that has ended: %v", err)
	}
}

func TestKeys(t *testing.T) {
	dir := t.TempDir()
	n := open(t, dir, newNetwork())
	defer n.Close()
	for _, name := range []string{"web", "a name, with spaces", "ä"} {
		if _, err := n.GenerateKey(name); err != nil {
			t.Error(err)
		}
	}
	if _, err := n.GenerateKey("web"); !errors.Is(err, ErrKeyExists) {
		t.Errorf("a second one: %v", err)
	}
	for _, name := range []string{"", "self", "a/b", strings.Repeat("x", 129)} {
		if _, err := n.GenerateKey(name); !errors.Is(err, ErrBadKeyName) {
			t.Errorf("%.20q: %v", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "keystore", "README"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := n.Keys()
	if err != nil || len(keys) != 4 || keys[0].Name != "self" || keys[1].Name != "a name, with spaces" {
		t.Errorf("Keys: %v, %v", keys, err)
	}
	// Kubo's names of files.
	path := filepath.Join(dir, "keystore", "key_o5swe")
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if err := os.WriteFile(path, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Publish(t.Context(), first, PublishOptions{Key: "web"}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a damaged key: %v, want an error that names the file", err)
	}
}

func TestDamagedRecordIsGotAgain(t *testing.T) {
	net := newNetwork()
	a, b := open2(t, net), open2(t, net)
	name := publish(t, a, first, PublishOptions{})
	wantValue(t, b, name, first)
	if err := os.WriteFile(filepath.Join(b.dir, name+".record"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantValue(t, b, name, first)
}

func FuzzReadRecord(f *testing.F) {
	sk := newKey(f)
	id, err := nameOf(sk)
	if err != nil {
		f.Fatal(err)
	}
	p, err := path.NewPath(first)
	if err != nil {
		f.Fatal(err)
	}
	rec, err := ipns.NewRecord(sk, p, 1, time.Now().Add(time.Hour), time.Minute)
	if err != nil {
		f.Fatal(err)
	}
	raw, err := ipns.MarshalRecord(rec)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte{0x0a, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := readRecord(id, b)
		if err == nil && (r.value != first || r.seq != 1) {
			t.Errorf("a forged record was taken: %+v", r)
		}
	})
}
