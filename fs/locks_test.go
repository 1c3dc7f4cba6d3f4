package fs

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ls locks
		unlock, err := ls.lock(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		// Another name is another lock.
		other, err := ls.lock(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		other()
		// Who waits leaves when its context ends.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := ls.lock(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		// The others have it one after the other.
		var inside, most, done atomic.Int32
		for range 10 {
			go func() {
				unlock, err := ls.lock(t.Context(), "a")
				if err != nil {
					t.Error(err)
					return
				}
				most.Store(max(most.Load(), inside.Add(1)))
				time.Sleep(time.Millisecond)
				inside.Add(-1)
				done.Add(1)
				unlock()
			}()
		}
		synctest.Wait()
		if done.Load() != 0 {
			t.Error("somebody had the lock while it was held")
		}
		unlock()
		time.Sleep(time.Second)
		synctest.Wait()
		if done.Load() != 10 || most.Load() != 1 {
			t.Errorf("%d had the lock, %d at once", done.Load(), most.Load())
		}
		if len(ls.byName) != 0 {
			t.Errorf("%d locks are kept", len(ls.byName))
		}
	})
}
