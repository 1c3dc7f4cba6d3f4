package kubo

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/ipfs-stargz/ipfs-stargz/ipfs/blockstest"
	"github.com/ipfs-stargz/ipfs-stargz/ipfs/internal/stall"
)

// What a daemon says of pins, ours or Kubo.
func TestPins(t *testing.T) {
	root := blockstest.Random(t, 1, 10).Cid()
	line := func(format string, args ...any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, format, args...) }
	}
	ours := client(t, line(`{"Cid":"%s","Type":"recursive","Name":"n","Size":12,"Held":5,"Blocks":3,"Time":"2026-01-02T03:04:05Z"}`+"\n", root))
	list, err := ours.Pins(t.Context())
	want := Pin{CID: root, Name: "n", Size: 12, Held: 5, Blocks: 3, Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	if err != nil || len(list) != 1 || list[0] != want {
		t.Errorf("ours: %+v, %v", list, err)
	}
	list, err = client(t, line(`{"Cid":"%s","Type":"recursive","Name":"n"}`, root)).Pins(t.Context())
	if err != nil || len(list) != 1 || list[0] != (Pin{CID: root, Name: "n"}) {
		t.Errorf("Kubo: %+v, %v", list, err)
	}
	if list, err := client(t, line("")).Pins(t.Context()); err != nil || list == nil || len(list) != 0 {
		t.Errorf("none: %+v, %v", list, err)
	}
	for what, answer := range map[string]http.HandlerFunc{
		"no CID":       line(`{"Cid":"x"}`),
		"no JSON":      line("<html>"),
		"endless line": line("%s", strings.Repeat(" {", maxLine)),
		"broken off": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"Cid":"%s"}`+"\n", root)
			w.(http.Flusher).Flush()
			w.Header().Set(http.TrailerPrefix+streamErrorTrailer, "the rest is gone")
		},
	} {
		c := client(t, answer)
		if _, err := c.Pins(t.Context()); err == nil || !strings.Contains(err.Error(), "pin/ls at "+c.Addr()) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A pin takes as long as the fetch does: the daemon's empty lines and progress
// are signs of life, silence is not.
func TestPinProgress(t *testing.T) {
	root := blockstest.Random(t, 1, 10).Cid()
	slow := client(t, func(w http.ResponseWriter, _ *http.Request) {
		for i := range 8 {
			if i%2 == 0 {
				fmt.Fprintf(w, `{"Progress":%d,"Bytes":%d}`, i, 100*i)
			}
			fmt.Fprintln(w)
			w.(http.Flusher).Flush()
			time.Sleep(100 * time.Millisecond)
		}
		fmt.Fprintf(w, `{"Pins":["%s"]}`, root)
	}, WithTimeout(500*time.Millisecond))
	var blocks, bytes int64
	err := slow.Pin(t.Context(), root, "n", func(n, size int64) { blocks, bytes = n, size })
	if err != nil || blocks != 6 || bytes != 600 {
		t.Errorf("%v, at %d blocks of %d bytes", err, blocks, bytes)
	}
	silent := client(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w)
		w.(http.Flusher).Flush()
		hang(w, r)
	}, WithTimeout(200*time.Millisecond))
	if err := silent.Pin(t.Context(), root, "", nil); !errors.Is(err, stall.ErrStalled) {
		t.Errorf("silence: %v, want a stall", err)
	}
	nothing := client(t, func(http.ResponseWriter, *http.Request) {})
	if err := nothing.Pin(t.Context(), root, "", nil); err == nil || !strings.Contains(err.Error(), "not acknowledged") {
		t.Errorf("an empty answer: %v", err)
	}
	if err := nothing.Unpin(t.Context(), root); err != nil {
		t.Errorf("unpin: %v", err)
	}
}

// gc names what went; an error among the lines, as Kubo sends it, is one.
func TestGC(t *testing.T) {
	root := blockstest.Random(t, 1, 10).Cid()
	var to string
	c := client(t, func(w http.ResponseWriter, r *http.Request) {
		to = r.URL.Query().Get("to")
		fmt.Fprintf(w, `{"Key":{"/":"%s"},"Size":10}`+"\n\n"+`{"Error":"this went wrong"}`+"\n", root)
	})
	var went []cid.Cid
	err := c.GC(t.Context(), 5, func(id cid.Cid, size int64) {
		if size != 10 {
			t.Errorf("size %d", size)
		}
		went = append(went, id)
	})
	if err == nil || !strings.Contains(err.Error(), "this went wrong") || len(went) != 1 || went[0] != root || to != "5" {
		t.Errorf("%v; %v went, to %s", err, went, to)
	}
}
