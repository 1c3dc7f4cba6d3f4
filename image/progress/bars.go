package progress

import (
	"io"
	"sync/atomic"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// NewBars returns a reporter that draws a bar for each task on the terminal w.
func NewBars(w io.Writer) Reporter {
	return &bars{p: mpb.New(mpb.WithOutput(w), mpb.WithWidth(40))}
}

type bars struct{ p *mpb.Progress }

func (b *bars) Task(name string, total int64) Task {
	t := new(bar)
	t.result.Store(new(string))
	end := decor.Any(func(decor.Statistics) string { return *t.result.Load() })
	t.bar = b.p.AddBar(total,
		mpb.PrependDecorators(
			decor.Name(name, decor.WCSyncSpaceR),
			decor.Counters(decor.SizeB1024(0), "% .1f / % .1f", decor.WCSyncSpace),
		),
		mpb.AppendDecorators(end),
	)
	return t
}

func (b *bars) Warn(message string) {
	// Above the bars; after Close there is nobody left to show it to.
	_, _ = io.WriteString(b.p, "warning: "+message+"\n")
}

func (b *bars) Close() { b.p.Shutdown() }

type bar struct {
	bar    *mpb.Bar
	result atomic.Pointer[string]
}

func (t *bar) Add(n int64) { t.bar.IncrInt64(n) }

func (t *bar) Done(result string) {
	t.result.Store(&result)
	t.bar.SetTotal(-1, true) // complete where it stands
}
