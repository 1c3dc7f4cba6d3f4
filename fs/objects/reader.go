package objects

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"time"
)

// reader returns the context of a request: it ends when the thread that waits
// for it is being killed. done must be called when the request is answered.
//
// The kernel interrupts a request on any signal that its reader handles, and a
// local file system's open or read never fails for one: programs do not expect
// EINTR from a file. So an interrupt only starts a watch for SIGKILL, which is
// what every signal that ends a process becomes.
func reader(cancel <-chan struct{}, tid uint32) (ctx context.Context, done context.CancelFunc) {
	ctx, done = context.WithCancel(context.Background())
	go func() {
		select {
		case <-ctx.Done():
			return
		case <-cancel:
		}
		const often = 50 * time.Millisecond
		tick := time.NewTicker(often)
		defer tick.Stop()
		for {
			if dying(tid) {
				done()
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return ctx, done
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
