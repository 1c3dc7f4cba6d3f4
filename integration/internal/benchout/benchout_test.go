package benchout

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

func TestBar(t *testing.T) {
	for _, tt := range []struct {
		bar   Bar
		ratio float64
		want  bool
	}{
		{AtMost(0.1), 0.1, true},
		{AtMost(0.1), 0.11, false},
		{AtMost(0.1), math.NaN(), false},
		{AtLeast(1.5), 1.5, true},
		{AtLeast(1.5), 1.49, false},
		{AtLeast(1.5), math.NaN(), false},
		{AtLeast(1.5), math.Inf(1), true},
	} {
		if got := tt.bar.Reached(tt.ratio); got != tt.want {
			t.Errorf("%v reached by %v: %v", tt.bar, tt.ratio, got)
		}
	}
}

func TestWriter(t *testing.T) {
	var scripts, people bytes.Buffer
	w := New(&scripts, &people)
	for _, f := range []Figure{
		{Name: "block", Value: 0.4, Unit: "ms", Reference: "bitswap", ReferenceValue: 20, Bar: AtMost(0.1)},
		{Name: "bulk", Value: 250, Unit: "MB/s", Reference: "tuned bitswap", ReferenceValue: 200, Bar: AtLeast(1.5)},
		{Name: "new", Value: 1, Unit: "s", Reference: "nothing", Bar: AtMost(1)},
	} {
		if err := w.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	want := `{"name":"block","value":0.4,"unit":"ms","reference":"bitswap","reference_value":20,"ratio":0.02,"bar":"<= 0.1","ok":true}
{"name":"bulk","value":250,"unit":"MB/s","reference":"tuned bitswap","reference_value":200,"ratio":1.25,"bar":">= 1.5","ok":false}
{"name":"new","value":1,"unit":"s","reference":"nothing","reference_value":0,"ratio":null,"bar":"<= 1","ok":false}
`
	if got := scripts.String(); got != want {
		t.Errorf("the lines are\n%swant\n%s", got, want)
	}
	for line := range strings.Lines(scripts.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil || len(m) != 8 {
			t.Errorf("%q: %v", line, err)
		}
	}
	w.Logf("done with %s", "it")
	if err := w.Table(); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"done with it", "0.4 ms", "250 MB/s", "1.25", ">= 1.5", "FALLS SHORT"} {
		if !strings.Contains(people.String(), part) {
			t.Errorf("people do not read %q in:\n%s", part, people.String())
		}
	}
}

// TestNoMeasurement refuses what JSON could not say.
func TestNoMeasurement(t *testing.T) {
	var scripts bytes.Buffer
	w := New(&scripts, io.Discard)
	for _, v := range []float64{math.NaN(), math.Inf(1)} {
		if err := w.Add(Figure{Name: "x", Value: v, ReferenceValue: 1}); err == nil {
			t.Errorf("%v was taken for a measurement", v)
		}
	}
	if scripts.Len() > 0 {
		t.Errorf("written all the same: %s", scripts.String())
	}
}

// TestFailingWriter tells that scripts cannot be written to.
func TestFailingWriter(t *testing.T) {
	broken := errors.New("broken")
	w := New(failing{broken}, io.Discard)
	if err := w.Add(Figure{Name: "x", Value: 1, ReferenceValue: 1}); !errors.Is(err, broken) {
		t.Errorf("Add: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
