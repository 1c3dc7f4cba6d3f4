package interrupt

import (
	"context"
	"errors"
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// nobody is the id of a thread that does not exist: as good as one that is
// being killed.
const nobody = 1<<32 - 2

// TestInterruptAlone checks that an interrupt does nothing to a thread that
// lives on, and that the request's end stops the watch for it.
func TestInterruptAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cancel := make(chan struct{})
		ctx, done := Context(cancel, uint32(os.Getpid()))
		ended := ctx.Done()
		close(cancel)
		time.Sleep(time.Minute) // it is looked at many times
		if ctx.Err() != nil {
			t.Error("an interrupt ended the context of a thread that lives")
		}
		done()
		done()
		<-ended
		if !errors.Is(ctx.Err(), context.Canceled) {
			t.Error(ctx.Err())
		}
	})
}

// TestKilled checks that a thread that is gone ends its request.
func TestKilled(t *testing.T) {
	cancel := make(chan struct{})
	ctx, done := Context(cancel, nobody)
	defer done()
	ended := ctx.Done()
	select {
	case <-ended:
		t.Fatal("ended without an interrupt")
	default:
	}
	close(cancel)
	<-ended
	if !errors.Is(ctx.Err(), context.Canceled) {
		t.Error(ctx.Err())
	}
}

// TestDerived checks that contexts made from a request's end with it, also when
// the interrupt came first.
func TestDerived(*testing.T) {
	cancel := make(chan struct{})
	close(cancel)
	ctx, done := Context(cancel, nobody)
	defer done()
	child, stop := context.WithCancel(ctx)
	defer stop()
	<-child.Done()
}

// TestFinishedFirst checks that who asks after the end is told of it.
func TestFinishedFirst(t *testing.T) {
	ctx, done := Context(nil, nobody)
	done()
	<-ctx.Done()
	if ctx.Err() == nil {
		t.Error("no error")
	}
}

// TestNoGoroutine checks that a request that nobody waits for starts none.
func TestNoGoroutine(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 100 {
		ctx, done := Context(make(chan struct{}), nobody)
		if ctx.Err() != nil {
			t.Fatal(ctx.Err())
		}
		defer done()
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines more", n-before)
	}
}
