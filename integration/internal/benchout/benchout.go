// Package benchout is how the benchmarks (cmd/bench-*) say what they measured:
// a table for people, and one JSON object a line for scripts,
//
//	{"name","value","unit","reference","reference_value","ratio","bar","ok"}
//
// A figure never stands alone: it has a reference that was measured in the same
// run, since absolute times are noisy and ratios hold. Whether the ratio
// reaches its bar is computed here and written by nobody.
package benchout

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"sync"
	"text/tabwriter"
)

// Bar is what a figure's ratio to its reference has to reach. The zero Bar is
// reached by no ratio; use [AtMost] and [AtLeast].
type Bar struct {
	limit   float64
	atLeast bool
}

// AtMost is the bar of what should be small: time, bytes moved.
func AtMost(ratio float64) Bar { return Bar{limit: ratio} }

// AtLeast is the bar of what should be large: speed, nodes that finished.
func AtLeast(ratio float64) Bar { return Bar{limit: ratio, atLeast: true} }

// Reached tells whether a ratio is good enough. What could not be measured (no
// number) is not.
func (b Bar) Reached(ratio float64) bool {
	if b.atLeast {
		return ratio >= b.limit
	}
	return ratio <= b.limit
}

// String is the bar in JSON and in the table: "<= 0.1" or ">= 1.5".
func (b Bar) String() string {
	sign := "<="
	if b.atLeast {
		sign = ">="
	}
	return sign + " " + strconv.FormatFloat(b.limit, 'g', -1, 64)
}

// Figure is one result.
type Figure struct {
	Name           string // lower case, words joined by "-"
	Value          float64
	Unit           string // of Value and ReferenceValue
	Reference      string // what it is compared with
	ReferenceValue float64
	Bar            Bar
}

// Ratio is the value in units of the reference; not a number without a
// reference.
func (f Figure) Ratio() float64 {
	if f.ReferenceValue == 0 {
		return math.NaN()
	}
	return f.Value / f.ReferenceValue
}

// OK tells whether the figure reaches its bar.
func (f Figure) OK() bool { return f.Bar.Reached(f.Ratio()) }

// line is the JSON of a figure.
type line struct {
	Name           string   `json:"name"`
	Value          float64  `json:"value"`
	Unit           string   `json:"unit"`
	Reference      string   `json:"reference"`
	ReferenceValue float64  `json:"reference_value"`
	Ratio          *float64 `json:"ratio"` // null: there was nothing to compare with
	Bar            string   `json:"bar"`
	OK             bool     `json:"ok"`
}

// Writer writes figures as they come, and the table at the end. It is safe for
// concurrent use.
type Writer struct {
	mu      sync.Mutex
	json    *json.Encoder
	people  io.Writer
	figures []Figure
}

// New returns a Writer of JSON lines to scripts and of text to people.
func New(scripts, people io.Writer) *Writer {
	return &Writer{json: encoder(scripts), people: people}
}

// encoder writes "<=" as it is.
func encoder(w io.Writer) *json.Encoder {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e
}

// Logf tells people what goes on.
func (w *Writer) Logf(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	// Nobody to tell that nobody listens.
	_, _ = fmt.Fprintf(w.people, format+"\n", args...)
}

// Add writes a figure for scripts, and keeps it for the table. A value that is
// no number, or infinite, is refused: it was not measured.
func (w *Writer) Add(f Figure) error {
	for _, v := range []float64{f.Value, f.ReferenceValue} {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Errorf("figure %s: %v %s against %v is no measurement", f.Name, f.Value, f.Unit, f.ReferenceValue)
		}
	}
	l := line{
		Name: f.Name, Value: f.Value, Unit: f.Unit, Reference: f.Reference, ReferenceValue: f.ReferenceValue,
		Bar: f.Bar.String(), OK: f.OK(),
	}
	if r := f.Ratio(); !math.IsNaN(r) {
		l.Ratio = &r
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.figures = append(w.figures, f)
	return w.json.Encode(l)
}

// Table writes all figures for people.
func (w *Writer) Table() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := tabwriter.NewWriter(w.people, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nFIGURE\tVALUE\tREFERENCE\tVALUE\tRATIO\tBAR\t")
	for _, f := range w.figures {
		verdict := "ok"
		if !f.OK() {
			verdict = "FALLS SHORT"
		}
		fmt.Fprintf(t, "%s\t%s %s\t%s\t%s %s\t%s\t%s\t%s\n", f.Name, short(f.Value), f.Unit,
			f.Reference, short(f.ReferenceValue), f.Unit, short(f.Ratio()), f.Bar, verdict)
	}
	return t.Flush()
}

// short is a number with three digits that count, and all before the point.
func short(v float64) string {
	switch size := math.Abs(v); {
	case math.IsNaN(v):
		return "-"
	case size >= 100 || v == math.Trunc(v):
		return strconv.FormatFloat(v, 'f', 0, 64)
	default:
		return strconv.FormatFloat(v, 'g', 3, 64)
	}
}
