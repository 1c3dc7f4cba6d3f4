package objects

import (
	"slices"
	"time"
)

const (
	// maxStranded bounds the chunks that are kept in memory because the cache
	// cannot keep them, in bytes: a chunk is read in many requests, each of which
	// would fetch it.
	maxStranded = 16 << 20
	// offerEvery is how often the cache is offered one of them again that is
	// wanted: there may be room by now.
	offerEvery = time.Second
)

// strand keeps a flight for those who read on in it, until others follow. l.mu
// is held.
func (l *Loader) strand(f *flight) {
	f.users++
	f.stranded, f.offered = true, time.Now()
	l.memory.release(f.account, f.size())
	l.stranded = append(l.stranded, f)
	l.strandedBytes += f.size()
	for l.strandedBytes > maxStranded {
		first := l.stranded[0]
		l.unstrand(first)
		if first.users == 0 && first.over {
			l.free(first)
		}
	}
}

// unstrand keeps a stranded flight no longer, if that was not done before. l.mu
// is held.
func (l *Loader) unstrand(f *flight) {
	i := slices.Index(l.stranded, f)
	if i < 0 {
		return
	}
	l.stranded = slices.Delete(l.stranded, i, i+1)
	l.strandedBytes -= f.size()
	l.remove(f)
	f.users--
}

// offerAgain offers a stranded flight to the cache if it is time to, and nobody
// else waits to write. Without that it would stay here as long as it is wanted,
// and never get into the cache. l.mu is held.
func (l *Loader) offerAgain(f *flight) {
	if l.closed || !f.over || time.Since(f.offered) < offerEvery {
		return
	}
	select {
	case l.writers <- struct{}{}:
	default:
		return
	}
	f.offered = time.Now()
	f.users++
	stored := make(chan struct{})
	f.stored = stored
	l.wg.Go(func() {
		kept := l.storeAgain(f)
		<-l.writers
		if kept {
			l.mu.Lock()
			l.unstrand(f)
			l.mu.Unlock()
		}
		close(stored)
		l.leave(f)
	})
}

// storeAgain is store for a flight whose object was given back.
func (l *Loader) storeAgain(f *flight) (ok bool) {
	o, err := l.objects.get(f.obj.Key)
	if err != nil {
		return false
	}
	defer l.objects.put(o)
	if f.chunk >= len(o.Chunks) || o.Chunks[f.chunk] != f.obj.Chunks[f.chunk] {
		return false // layers disagree on what it is
	}
	return l.store(o, f)
}

// stored is closed when a flight is in the cache, if it can be.
func (l *Loader) stored(f *flight) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return f.stored
}
