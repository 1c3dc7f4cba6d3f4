package objects

import (
	"context"
	"sync"
	"time"
)

// demandGate knows whether anybody waits for contents, for those who fetch what
// nobody waits for.
type demandGate struct {
	mu      sync.Mutex
	active  int
	lastEnd time.Time
	idle    chan struct{} // closed when active gets 0; nil: nobody wants to know
}

func (d *demandGate) begin() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.active++
}

func (d *demandGate) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.active--
	d.lastEnd = time.Now()
	if d.active == 0 && d.idle != nil {
		close(d.idle)
		d.idle = nil
	}
}

// quiet returns when nobody has waited for anything for so long, or with ctx's
// error.
func (d *demandGate) quiet(ctx context.Context, long time.Duration) error {
	for {
		d.mu.Lock()
		var idle chan struct{}
		if d.active > 0 {
			if d.idle == nil {
				d.idle = make(chan struct{})
			}
			idle = d.idle
		}
		left := long - time.Since(d.lastEnd)
		d.mu.Unlock()
		var err error
		switch {
		case idle != nil:
			err = await(ctx, idle)
		case left > 0:
			err = sleep(ctx, left)
		default:
			return ctx.Err()
		}
		if err != nil {
			return err
		}
	}
}

// await returns when done is closed, or with ctx's error. It asks ctx for its
// channel only where it has to wait.
func await(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	default:
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
