package direct

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
)

// A set is what a map is, and its runs are those that the map has and another
// has not.
func TestSet(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		n := 1 + rnd.IntN(400)
		var sets [2]set
		var maps [2]map[int]bool
		for k := range sets {
			maps[k] = map[int]bool{}
			for range rnd.IntN(3 * n) {
				i := rnd.IntN(n)
				if rnd.IntN(4) == 0 {
					if sets[k].remove(i) != maps[k][i] {
						t.Fatal("remove tells what is not so")
					}
					delete(maps[k], i)
				} else {
					if sets[k].add(i) == maps[k][i] {
						t.Fatal("add tells what is not so")
					}
					maps[k][i] = true
				}
			}
		}
		var want []span
		for i := range n {
			if sets[0].has(i) != maps[0][i] {
				t.Fatalf("has(%d) is wrong", i)
			}
			switch {
			case !maps[0][i] || maps[1][i]:
			case len(want) > 0 && want[len(want)-1].last == i-1:
				want[len(want)-1].last = i
			default:
				want = append(want, span{i, i})
			}
		}
		if got := slices.Collect(sets[0].spans(sets[1])); !slices.Equal(got, want) {
			t.Fatalf("spans: %v, want %v", got, want)
		}
	}
}

func TestMessages(t *testing.T) {
	root := blockstest.Random(t, 1, 10).Cid()
	var b []byte
	want := []message{
		{kind: kindWatch, root: root},
		{kind: kindHave, root: root, spans: []span{{0, 0}, {5, 900}, {maxParts - 1, maxParts - 1}}},
		{kind: kindHave, root: root},
		{kind: kindGone, root: root, spans: []span{{3, 3}}},
		{kind: kindUnwatch, root: root},
	}
	for _, m := range want {
		b = m.append(b)
	}
	in := bufio.NewReader(bytes.NewReader(b))
	for _, w := range want {
		if m, err := readMessage(in); err != nil || !reflect.DeepEqual(m, w) {
			t.Errorf("%+v, %v; want %+v", m, err, w)
		}
	}
	if _, err := readMessage(in); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	if _, err := readMessage(bufio.NewReader(bytes.NewReader(b[:9]))); err != io.ErrUnexpectedEOF {
		t.Errorf("cut off: %v", err)
	}
}

func TestHostileMessages(t *testing.T) {
	root := blockstest.Random(t, 1, 10).Cid()
	weak, err := cid.NewPrefixV1(cid.Raw, multihash.MD5).Sum(nil)
	if err != nil {
		t.Fatal(err)
	}
	have := func(rest ...byte) []byte {
		m := message{kind: kindHave, root: root}.append(nil)[1:]
		return append(m, rest...)
	}
	for name, body := range map[string][]byte{
		"kind":                 message{kind: 9, root: root}.append(nil)[1:],
		"weak hash":            message{kind: kindWatch, root: weak}.append(nil)[1:],
		"no CID":               {kindWatch, 0},
		"CID over the end":     {kindWatch, 100, 1, 2},
		"more than a watch":    append(message{kind: kindWatch, root: root}.append(nil)[1:], 0),
		"half a run":           have(1),
		"part over the limit":  have(0xff, 0xff, 0x3f, 1),
		"many over the limit":  have(0, 0xff, 0xff, 0x7f),
		"number without end":   have(0xff),
		"number over 64 bits":  have(0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0),
		"runs that climb over": have(0xff, 0xff, 0x3f, 0, 0xff, 0xff, 0x3f, 0),
	} {
		if m, err := parseMessage(body); !errors.Is(err, errWire) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
	for name, b := range map[string][]byte{"empty": {0}, "too long": {0xff, 0xff, 0xff, 0x7f}} {
		if _, err := readMessage(bufio.NewReader(bytes.NewReader(b))); !errors.Is(err, errWire) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzMessage(f *testing.F) {
	root := blockstest.Random(f, 1, 10).Cid()
	for _, m := range []message{
		{kind: kindWatch, root: root},
		{kind: kindHave, root: root, spans: []span{{0, 3}, {100, 100}}},
	} {
		f.Add(m.append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readMessage(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		next := 0
		for _, s := range m.spans {
			if s.first < next || s.last < s.first || s.last >= maxParts {
				t.Fatalf("runs %v", m.spans)
			}
			next = s.last + 1
		}
		again, err := readMessage(bufio.NewReader(bytes.NewReader(m.append(nil))))
		if err != nil || again.kind != m.kind || again.root != m.root || !slices.Equal(again.spans, m.spans) {
			t.Fatalf("%+v became %+v, %v", m, again, err)
		}
	})
}
