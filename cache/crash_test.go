package cache

import (
	"errors"
	"os"
	"testing"
	"time"
)

// TestInterrupted opens the cache that a process leaves which ends at each step
// of what it does to an object's file, and of what it does when it opens.
func TestInterrupted(t *testing.T) {
	const size = 9000 // of two chunks
	data, chunks := contents(1, 4000, 5000)
	k := Key{1}
	flags := func(set ...byte) []byte {
		b := make([]byte, 12288+2)
		copy(b, data)
		copy(b[12288:], set)
		return b
	}
	type step struct {
		write map[string][]byte // files
		stamp string            // of those, the one that has the time of an object
		whole bool              // whether it is an object in the end
		has   []bool            // else the chunks that are here
	}
	name := k.String()
	for what, s := range map[string]step{
		"nothing":                              {has: []bool{false, false}},
		"put, writing":                         {write: map[string][]byte{"tmp/put-1": data[:100]}, has: []bool{false, false}},
		"put, before the rename":               {write: map[string][]byte{"tmp/put-1": data}, stamp: "tmp/put-1", has: []bool{false, false}},
		"put":                                  {write: map[string][]byte{"objects/" + name: data}, stamp: "objects/" + name, whole: true},
		"partial, made":                        {write: map[string][]byte{"partial/" + name: nil}, has: []bool{false, false}},
		"partial, chunk without flag":          {write: map[string][]byte{"partial/" + name: flags(0, 0)}, has: []bool{false, false}},
		"partial, one chunk":                   {write: map[string][]byte{"partial/" + name: flags(0, 1)}, has: []bool{false, true}},
		"partial, flag without chunk":          {write: map[string][]byte{"partial/" + name: append(make([]byte, 12288), 1, 1)}, has: []bool{false, false}},
		"partial, all chunks":                  {write: map[string][]byte{"partial/" + name: flags(1, 1)}, whole: true},
		"partial, flags cut off":               {write: map[string][]byte{"partial/" + name: data}, whole: true},
		"partial, flags cut off of half":       {write: map[string][]byte{"partial/" + name: append(data[:4000:4000], make([]byte, 5000)...)}, has: []bool{true, false}},
		"partial, before the rename":           {write: map[string][]byte{"partial/" + name: data}, stamp: "partial/" + name, whole: true},
		"partial, object there already":        {write: map[string][]byte{"partial/" + name: data, "objects/" + name: data}, stamp: "objects/" + name, whole: true},
		"evicted, before the removal":          {write: map[string][]byte{"tmp/evict-" + name: flags(1, 1)}, has: []bool{false, false}},
		"changed, not set aside":               {write: map[string][]byte{"objects/" + name: data}, whole: true},
		"set aside, not verified":              {write: map[string][]byte{"suspect/" + name: data}, whole: true},
		"set aside, verified":                  {write: map[string][]byte{"suspect/" + name: data}, stamp: "suspect/" + name, whole: true},
		"set aside, damaged":                   {write: map[string][]byte{"suspect/" + name: make([]byte, size)}, has: []bool{false, false}},
		"set aside, and again":                 {write: map[string][]byte{"suspect/" + name: make([]byte, size), "objects/" + name: data}, whole: true},
		"set aside, object there again":        {write: map[string][]byte{"suspect/" + name: data, "objects/" + name: data}, stamp: "objects/" + name, whole: true},
		"session, torn":                        {write: map[string][]byte{"objects/" + name: data, "session": []byte("1234-5")}, stamp: "objects/" + name, whole: true},
		"session, empty":                       {write: map[string][]byte{"objects/" + name: data, "session": {}}, stamp: "objects/" + name, whole: true},
		"session, torn, objects lost":          {write: map[string][]byte{"objects/" + name: make([]byte, size), "session": {}}, stamp: "objects/" + name, has: []bool{false, false}},
		"session, torn while others set aside": {write: map[string][]byte{"objects/" + name: data, "suspect/" + name: make([]byte, size), "session": {}}, stamp: "objects/" + name, whole: true},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			o := Options{Dir: t.TempDir(), Layers: &fakeLayers{list: []*fakeLayer{{keys: []Key{k}, chunks: map[Key][]Chunk{k: chunks}}}}}
			c := mustOpenWith(t, o)
			kill(c)
			for file, b := range s.write {
				must(t, os.WriteFile(c.path(file), b, 0o600))
			}
			if s.stamp != "" {
				must(t, os.Chtimes(c.path(s.stamp), time.Time{}, time.Unix(stamp(k, size), 0)))
			}
			c = mustOpenWith(t, o)
			counted(t, c)
			eventually(t, "what is suspect is verified", func() bool { return !c.suspects.Load() })
			if left, err := os.ReadDir(c.path("tmp")); err != nil || len(left) > 0 {
				t.Errorf("left in tmp/: %v, %v", left, err)
			}
			p, err := c.Partial(k, chunks)
			must(t, err)
			defer p.Release()
			for i := range chunks {
				if has, want := p.Has(i), s.whole || s.has[i]; has != want {
					t.Errorf("chunk %d: %v, want %v", i, has, want)
				}
			}
			if p.Complete() != s.whole || c.Has(k) != s.whole {
				t.Errorf("complete: %v, object: %v, want %v", p.Complete(), c.Has(k), s.whole)
			}
			// It goes on from there.
			must(t, errors.Join(p.Write(0, data[:4000]), p.Write(1, data[4000:])))
			mustBe(t, c, k, data)
			if u := c.Usage(); u.Objects != 1 {
				t.Errorf("usage: %+v", u)
			}
		})
	}
}
