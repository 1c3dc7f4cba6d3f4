// Package interrupt makes a context of a FUSE request.
package interrupt

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"sync"
	"time"
)

// Context returns the context of a request: it ends when the thread that waits
// for it is being killed, or when done is called, which must be when the request
// is answered. cancel is closed when the kernel interrupts the request; tid is
// that of the thread.
//
// The kernel interrupts a request on any signal that its reader handles, and a
// local file system's open or read never fails for one: programs do not expect
// EINTR from a file. So an interrupt only starts a watch for SIGKILL, which is
// what every signal that ends a process becomes.
//
// Nobody watches before somebody waits for the context: most requests are
// answered at once, and cost no goroutine.
func Context(cancel <-chan struct{}, tid uint32) (ctx context.Context, done context.CancelFunc) {
	r := &request{Context: context.Background(), cancel: cancel, tid: tid}
	return r, r.finish
}

// request is the context of a request.
type request struct {
	context.Context // no deadline, no values
	cancel          <-chan struct{}
	tid             uint32

	mu   sync.Mutex
	done chan struct{} // made when it is first asked for
	err  error
}

// Done implements [context.Context].
func (r *request) Done() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done == nil {
		r.done = make(chan struct{})
		if r.err != nil {
			close(r.done)
		} else {
			go r.watch(r.done)
		}
	}
	return r.done
}

// Err implements [context.Context].
func (r *request) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// finish ends the context.
func (r *request) finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return
	}
	r.err = context.Canceled
	if r.done != nil {
		close(r.done)
	}
}

// watch ends the context when its thread is being killed.
func (r *request) watch(done <-chan struct{}) {
	select {
	case <-done:
		return
	case <-r.cancel:
	}
	const often = 50 * time.Millisecond
	tick := time.NewTicker(often)
	defer tick.Stop()
	for {
		if dying(r.tid) {
			r.finish()
			return
		}
		select {
		case <-done:
			return
		case <-tick.C:
		}
	}
}

// dying reports whether a thread has SIGKILL pending, or is gone.
func dying(tid uint32) bool {
	status, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(tid), 10) + "/status")
	if err != nil {
		return true
	}
	const sigkill = 1 << (9 - 1)
	for _, field := range []string{"\nSigPnd:\t", "\nShdPnd:\t"} {
		_, after, ok := bytes.Cut(status, []byte(field))
		if !ok {
			continue
		}
		hex, _, _ := bytes.Cut(after, []byte("\n"))
		if set, err := strconv.ParseUint(string(hex), 16, 64); err == nil && set&sigkill != 0 {
			return true
		}
	}
	return false
}
