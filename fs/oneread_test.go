package fs_test

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestOneRead checks what the first read of a small file costs its layer, from
// open to the last byte: one read, of no more than the file's compressed bytes and
// the headers behind them. Another open costs nothing, nor does a second name.
func TestOneRead(t *testing.T) {
	s := new(store)
	body := strings.Repeat("a small file\n", 1000)
	toc := s.add(t, "a", file{name: "before", body: random(1, 5000)}, file{name: "small", body: body},
		file{name: "name", link: "small"}, file{name: "after", body: random(2, 5000)})
	f := running(t, t.TempDir(), s)
	add(t, f, "a", toc)
	dir, umount := overlay(t, f, "a")
	defer umount()
	reads, bytes := s.counts()
	mustRead(t, filepath.Join(dir, "small"), body)
	if r, n := s.counts(); r-reads != 1 || n-bytes > len(body)/2 {
		t.Errorf("%d reads of %d bytes, for a file of %d", r-reads, n-bytes, len(body))
	}
	reads, _ = s.counts()
	mustRead(t, filepath.Join(dir, "small"), body)
	mustRead(t, filepath.Join(dir, "name"), body)
	if r, _ := s.counts(); r != reads {
		t.Errorf("%d reads of what is here", r-reads)
	}
}
