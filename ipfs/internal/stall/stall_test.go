package stall

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestWatch(t *testing.T) {
	const after = 10 * time.Second
	for _, tt := range []struct {
		name  string
		work  func(w *Watch)
		stall bool
	}{
		{"nobody waits", func(*Watch) { time.Sleep(5 * after) }, false},
		{"waits too long", func(w *Watch) { w.Enter(); time.Sleep(after + time.Second) }, true},
		{"waits almost too long", func(w *Watch) { w.Enter(); time.Sleep(after - time.Second) }, false},
		{"progress", func(w *Watch) {
			w.Enter()
			for range 20 {
				time.Sleep(after / 2)
				w.Touch()
			}
		}, false},
		{"progress, then none", func(w *Watch) {
			w.Enter()
			time.Sleep(after / 2)
			w.Touch()
			time.Sleep(after + time.Second)
		}, true},
		{"busy in between", func(w *Watch) {
			w.Enter()
			time.Sleep(after / 2)
			w.Leave()
			time.Sleep(3 * after)
			w.Enter()
			time.Sleep(after / 2)
		}, false},
		{"one of two waits", func(w *Watch) {
			w.Enter()
			w.Enter()
			w.Leave()
			time.Sleep(after + time.Second)
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, w := Start(t.Context(), after)
				tt.work(w)
				synctest.Wait()
				if got := errors.Is(context.Cause(ctx), ErrStalled); got != tt.stall {
					t.Errorf("stalled: %v, want %v (cause %v)", got, tt.stall, context.Cause(ctx))
				}
				w.Stop()
				if ctx.Err() == nil {
					t.Error("the context lives after Stop")
				}
			})
		})
	}
}
