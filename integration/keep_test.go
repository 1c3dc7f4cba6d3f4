package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/image"
	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
)

// TestKeep pins, lists, unpins and collects by the commands, and takes an image
// in a file to a node that no other node can be reached from.
func TestKeep(t *testing.T) {
	p := newPair(t, testbed.Options{}, testbed.DaemonConfig{})
	im := testImage(t, image.Debian())
	car := filepath.Join(t.TempDir(), "image.car")
	cid := p.push(im, "--car", car)

	type kept struct {
		CID, Name  string
		Size       int64 `json:"size_bytes"`
		Held       int64 `json:"held_bytes"`
		FreedBytes int64 `json:"freed_bytes"`
	}
	ask := func(n *testbed.Node, v any, command string, args ...string) {
		t.Helper()
		out, err := n.Stargz(t.Context(), command, append(args, "--json")...)
		p.must(err)
		if err := json.Unmarshal([]byte(out), v); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	var list []kept
	ask(p.a, &list, "ls")
	if len(list) != 1 || list[0].CID != cid || list[0].Name != im.Name || list[0].Held != list[0].Size || list[0].Size == 0 {
		t.Errorf("ls where it was pushed: %+v", list)
	}
	size := list[0].Size

	// Pinned on the other node, all of it comes, and stays.
	if out, err := p.b.Stargz(t.Context(), "pin", "--name", "mine", "ipfs://"+cid); err != nil || strings.TrimSpace(out) != cid {
		t.Errorf("pin: %q, %v", out, err)
	}
	var freed kept
	ask(p.b, &freed, "gc")
	ask(p.b, &list, "ls")
	if len(list) != 1 || list[0].Name != "mine" || list[0].Held != size || freed.FreedBytes != 0 {
		t.Errorf("after pin and gc: %+v, freed %d bytes", list, freed.FreedBytes)
	}
	if out, err := p.b.Stargz(t.Context(), "ls"); err != nil || !strings.Contains(out, cid) || !strings.Contains(out, "mine") {
		t.Errorf("ls: %v\n%s", err, out)
	}
	if _, err := p.b.Stargz(t.Context(), "unpin", cid); err != nil {
		t.Error(err)
	}
	if _, err := p.b.Stargz(t.Context(), "unpin", cid); err == nil || !strings.Contains(err.Error(), "not pinned") {
		t.Errorf("unpin of what is not: %v", err)
	}
	ask(p.b, &freed, "gc", "--to", "0")
	if freed.FreedBytes != size || freed.Held != 0 {
		t.Errorf("gc freed %d of %d bytes, %d are held", freed.FreedBytes, size, freed.Held)
	}

	// No other node from here on: the image comes in a file.
	p.must(p.a.StopDaemon())
	raw, err := os.ReadFile(car)
	p.must(err)
	cut := filepath.Join(t.TempDir(), "cut.car")
	p.must(os.WriteFile(cut, raw[:len(raw)/2], 0o600))
	if _, err := p.b.Stargz(t.Context(), "pull", "--car", cut); err == nil || !strings.Contains(err.Error(), cut) {
		t.Errorf("pull of half a CAR: %v", err)
	}
	ask(p.b, &list, "ls")
	if len(list) != 0 {
		t.Errorf("pinned from half a CAR: %+v", list)
	}
	if out, err := p.b.Stargz(t.Context(), "pull", "--car", car); err != nil || strings.TrimSpace(out) != cid {
		t.Fatalf("pull --car: %q, %v", out, err)
	}
	if out, err := p.b.Run(t.Context(), lazy, cid, "cat", "/etc/debian_version"); err != nil || strings.TrimSpace(out) == "" {
		t.Errorf("the container printed %q: %v", out, err)
	}
	ask(p.b, &list, "ls")
	if len(list) != 1 || list[0].Held != size {
		t.Errorf("ls after pull --car: %+v", list)
	}
}
