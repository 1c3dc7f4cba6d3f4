package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
)

// figure is a line of a benchmark's output, as a script reads it.
type figure struct {
	Name           string  `json:"name"`
	Value          float64 `json:"value"`
	Unit           string  `json:"unit"`
	Reference      string  `json:"reference"`
	ReferenceValue float64 `json:"reference_value"`
	Ratio          float64 `json:"ratio"`
	Bar            string  `json:"bar"`
	OK             bool    `json:"ok"`
}

// runBench runs a benchmark and gives its figures by name. Its lines are whole
// and right in themselves.
func runBench(t *testing.T, name string, args ...string) map[string]figure {
	t.Helper()
	program, err := testbed.BuildTool(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, args...)
	// It cleans up when it is asked to end.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	t.Log(stderr.String())
	figures := map[string]figure{}
	for line := range strings.Lines(stdout.String()) {
		var f figure
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&f); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if err := f.check(); err != nil {
			t.Errorf("%v: %s", err, line)
		}
		if _, twice := figures[f.Name]; twice {
			t.Errorf("there are two figures %s", f.Name)
		}
		figures[f.Name] = f
	}
	return figures
}

// TestBenchIPFS runs the short form of the benchmark: everything arrives and is
// right (else the benchmark fails), it says what it should, and bytes are not
// moved more often than there is a reason for. How fast it is, is not looked at.
func TestBenchIPFS(t *testing.T) {
	figures := runBench(t, "bench-ipfs", "-short")
	for _, want := range []struct {
		name        string
		least, most float64 // of the ratio; 0: it depends on the machine
	}{
		{"loopback-block-256KiB-p50", 0, 0},
		{"loopback-bulk-64KiB", 0, 0},
		{"loopback-bulk-256KiB", 0, 0},
		{"loopback-bulk-1024KiB", 0, 0},
		{"loopback-cpu-64KiB", 0, 0},
		{"loopback-cpu-256KiB", 0, 0},
		{"loopback-cpu-1024KiB", 0, 0},
		{"link-100Mbit-bulk", 0, 0},
		{"link-100Mbit-50ms-bulk", 0, 0},
		{"link-50ms-range-32-leaves", 0, 0},
		{"swarm-3-last-done", 0, 0},
		// Not more than each of the three nodes would fetch alone.
		{"swarm-3-seeder-sent", 0, 3.5},
		{"swarm-3-seeder-cut-at-half", 1, 1},
		{"swarm-3-seeder-killed-when-all-out", 1, 1},
		{"many-10-peers-500-blocks-heap-peak", 0, 0},
		{"many-10-peers-500-blocks-messages-per-block", 0, 0},
		{"many-10-peers-500-blocks-sent-per-block", 0, 0},
		// Not more than from each of the three peers that have it.
		{"many-10-peers-500-blocks-received", 1, 3.5},
		{"many-10-peers-500-blocks-speed", 0, 0},
	} {
		f, ok := figures[want.name]
		switch {
		case !ok:
			t.Errorf("there is no figure %s", want.name)
		case f.Ratio < want.least || want.most > 0 && f.Ratio > want.most:
			t.Errorf("%s: %v times %s, want %v to %v", f.Name, f.Ratio, f.Reference, want.least, want.most)
		}
		delete(figures, want.name)
	}
	for name := range figures {
		t.Errorf("there is a figure %s that nobody expects", name)
	}
}

// TestBenchFS runs the short form of the benchmark: everything reads and is
// right (else the benchmark fails), and it says what it should. No figure is
// judged.
func TestBenchFS(t *testing.T) {
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			figures := runBench(t, "bench-fs", "-short", "-binary", bin, "-mode", mode)
			want := []string{
				"cold-sequential", "cold-sequential-compressed", "sequential-1MiB", "random-4KiB",
				"small-files-cold", "small-files-warm",
				"first-mount", "later-mount", "walk-cold", "walk-again",
				"stat-100-layers", "cold-small-file-50ms-p50", "page-cache-of-two-images",
				"cold-file-32-readers-received", "memory-2-images-of-2000-entries",
			}
			if mode == "fuse" {
				want = append(want, "small-files-warm-loopback")
			}
			for _, name := range want {
				if _, ok := figures[mode+"-"+name]; !ok {
					t.Errorf("there is no figure %s-%s", mode, name)
				}
				delete(figures, mode+"-"+name)
			}
			for name := range figures {
				t.Errorf("there is a figure %s that nobody expects", name)
			}
		})
	}
}

// check computes what a script would believe.
func (f figure) check() error {
	if slices.Contains([]string{f.Name, f.Unit, f.Reference}, "") || f.ReferenceValue <= 0 || f.Value < 0 {
		return fmt.Errorf("figure %q is not whole", f.Name)
	}
	if ratio := f.Value / f.ReferenceValue; ratio < f.Ratio*0.999 || ratio > f.Ratio*1.001 {
		return fmt.Errorf("the ratio is %v", ratio)
	}
	sign, text, _ := strings.Cut(f.Bar, " ")
	bar, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return err
	}
	if want := map[string]bool{"<=": f.Ratio <= bar, ">=": f.Ratio >= bar}[sign]; want != f.OK {
		return fmt.Errorf("ok is %v, but computed %v", f.OK, want)
	}
	return nil
}
