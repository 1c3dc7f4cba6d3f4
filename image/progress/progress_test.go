package progress

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLines(t *testing.T) {
	var out bytes.Buffer
	r := NewLines(&out)
	task := r.Task("convert abc", 1536)
	if _, err := io.Copy(io.Discard, Reader(strings.NewReader("data"), task)); err != nil {
		t.Fatal(err)
	}
	task.Done("converted")
	r.Task("unknown size", 0).Done("done")
	r.Warn("a layer stays")
	r.Close()
	want := regexp.MustCompile(`^convert abc \(1\.5 KiB\): converted, \S+
unknown size: done, \S+
warning: a layer stays
$`)
	if !want.Match(out.Bytes()) {
		t.Errorf("lines:\n%s", &out)
	}
}

// TestReporters drives each reporter from many goroutines at once.
func TestReporters(t *testing.T) {
	for name, r := range map[string]Reporter{
		"lines": NewLines(io.Discard), "bars": NewBars(io.Discard), "discard": Discard(),
	} {
		t.Run(name, func(*testing.T) {
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					task := r.Task(fmt.Sprint("task ", i), int64(i)*100)
					for range 10 {
						task.Add(10)
					}
					r.Warn("careful")
					task.Done("done")
				})
			}
			wg.Wait()
			r.Close()
		})
	}
}

// TestBarsEndUnfinished closes a display whose tasks failed on the way.
func TestBarsEndUnfinished(*testing.T) {
	r := NewBars(io.Discard)
	task := r.Task("fails", 100)
	task.Add(10)
	task.Done("failed")
	r.Close()
}

func TestNewOnAFile(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, ok := New(f).(*lines); !ok {
		t.Error("a file is no terminal")
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 5 << 20: "5.0 MiB", 1<<63 - 1: "8.0 EiB",
	} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
}
