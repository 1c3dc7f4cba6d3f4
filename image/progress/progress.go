// Package progress tells a person how far a push or pull is: with bars on a
// terminal, with plain lines elsewhere. All of it goes to standard error, so
// that standard output carries results alone.
package progress

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// Reporter is told of tasks as they begin. It is safe for concurrent use.
type Reporter interface {
	// Task begins a piece of work on total bytes; 0 if that is not known.
	Task(name string, total int64) Task
	// Warn shows a line that the person should know of.
	Warn(message string)
	// Close ends the display. All tasks have ended.
	Close()
}

// Task is one piece of work.
type Task interface {
	// Add tells that n more bytes are done.
	Add(n int64)
	// Done ends the task, with a few words on what came of it. It is called
	// once; nothing follows it.
	Done(result string)
}

// New returns the reporter that suits f, which is standard error: bars if it is
// a terminal, else lines.
func New(f *os.File) Reporter {
	if term.IsTerminal(int(f.Fd())) {
		return NewBars(f)
	}
	return NewLines(f)
}

// Discard is a reporter that shows nothing.
func Discard() Reporter { return discard{} }

type discard struct{}

func (discard) Task(string, int64) Task { return discard{} }
func (discard) Warn(string)             {}
func (discard) Close()                  {}
func (discard) Add(int64)               {}
func (discard) Done(string)             {}

// NewLines returns a reporter that writes one line to w when a task ends, and
// one for each warning: what a log can keep.
func NewLines(w io.Writer) Reporter { return &lines{w: w} }

type lines struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lines) print(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	// Nothing is to be done about a standard error that is gone.
	_, _ = fmt.Fprintf(l.w, format+"\n", args...)
}

func (l *lines) Task(name string, total int64) Task {
	return &line{lines: l, name: name, total: total, begin: time.Now()}
}

func (l *lines) Warn(message string) { l.print("warning: %s", message) }

func (l *lines) Close() {}

type line struct {
	lines *lines
	name  string
	total int64
	begin time.Time
}

func (t *line) Add(int64) {}

func (t *line) Done(result string) {
	size := ""
	if t.total > 0 {
		size = " (" + Bytes(t.total) + ")"
	}
	t.lines.print("%s%s: %s, %s", t.name, size, result, time.Since(t.begin).Round(time.Millisecond))
}

// Bytes writes a size for people, in binary units: "1.5 MiB".
func Bytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	for v >= 1024 && unit < len(units)-1 {
		v, unit = v/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[unit])
}

// Reader counts what is read of r towards t.
func Reader(r io.Reader, t Task) io.Reader { return counting{r, t} }

type counting struct {
	io.Reader
	task Task
}

func (c counting) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.task.Add(int64(n))
	return n, err
}
