package chain

import (
	"maps"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
)

// A reader waits out the patience at each of its reads, one after the other, if
// the first source has nothing of a file and does not know it. So a chain
// remembers for a while of which files a later source gave the first block, and
// then goes on to the next source sooner. It does not go at once: what the
// first source has in its store comes within that time.
const (
	lateFor  = 30 * time.Second
	maxLates = 1024 // files in lateFor
)

// lateRoots remembers files by their roots.
type lateRoots struct {
	mu    sync.Mutex
	since map[cid.Cid]time.Time
}

func newLateRoots() *lateRoots { return &lateRoots{since: make(map[cid.Cid]time.Time)} }

func (l *lateRoots) is(root cid.Cid, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	t, ok := l.since[root]
	return ok && now.Sub(t) < lateFor
}

// add remembers a file, unless that was done already: the first source gets its
// whole time again now and then.
func (l *lateRoots) add(root cid.Cid, now time.Time) {
	if !root.Defined() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	over := func(_ cid.Cid, t time.Time) bool { return now.Sub(t) >= lateFor }
	if t, ok := l.since[root]; ok && !over(root, t) {
		return
	}
	if len(l.since) >= maxLates {
		maps.DeleteFunc(l.since, over)
	}
	if len(l.since) < maxLates {
		l.since[root] = now
	}
}
