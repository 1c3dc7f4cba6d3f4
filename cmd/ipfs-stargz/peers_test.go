package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs"
)

func TestPeersText(t *testing.T) {
	var b bytes.Buffer
	if err := (peers{}).write(&b); err != nil || b.String() != "nobody is connected\n" {
		t.Errorf("%q, %v", b.String(), err)
	}
	b.Reset()
	p := peers{
		Connected: []ipfs.Peer{{ID: "QmA", Addr: "/ip4/192.0.2.1/tcp/1", Known: "mdns", Agent: "evil\x1b[2J" + strings.Repeat("x", 1000), Latency: 1234567}},
		Banned:    []ipfs.Ban{{ID: "QmB", Reason: "wrong bytes", Until: time.Unix(0, 0)}},
	}
	if err := p.write(&b); err != nil {
		t.Fatal(err)
	}
	out := b.String()
	for _, want := range []string{"QmA   mdns   1.23ms", "evil?[2Jx", "/ip4/192.0.2.1/tcp/1", "QmB", "wrong bytes"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	if strings.Contains(out, "\x1b") || len(out) > 500 {
		t.Errorf("a peer's text got through: %q", out)
	}
}
