package fs

import (
	"context"
	"sync"
)

// locks are locks by name. The zero value is ready.
type locks struct {
	mu     sync.Mutex
	byName map[string]*nameLock
}

// nameLock is there while somebody holds it or waits for it.
type nameLock struct {
	held  chan struct{} // of capacity 1: full while the lock is held
	users int
}

// lock takes the lock of a name, and waits for it no longer than ctx lasts.
func (ls *locks) lock(ctx context.Context, name string) (unlock func(), err error) {
	ls.mu.Lock()
	l := ls.byName[name]
	if l == nil {
		if ls.byName == nil {
			ls.byName = map[string]*nameLock{}
		}
		l = &nameLock{held: make(chan struct{}, 1)}
		ls.byName[name] = l
	}
	l.users++
	ls.mu.Unlock()
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; ls.leave(name, l) }, nil
	case <-ctx.Done():
		ls.leave(name, l)
		return nil, ctx.Err()
	}
}

func (ls *locks) leave(name string, l *nameLock) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(ls.byName, name)
	}
}
