package prefetch_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/ipfs-stargz/ipfs-stargz/cache"
	"github.com/ipfs-stargz/ipfs-stargz/fs/prefetch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

// testLayer is a layer whose objects follow one another as listed.
type testLayer struct {
	cid     string
	objects []prefetch.Object
	head    int // how many of them are before the landmark

	mu      sync.Mutex
	ordered int // how often its order was asked for
}

func key(name string) cache.Key { return cache.Key(sha256.Sum256([]byte(name))) }

// layerOf makes a layer of objects given as "name" or "name*chunks", each chunk
// of 1 MiB; those before "|" are its head.
func layerOf(cid, objects string) *testLayer {
	l := &testLayer{cid: cid}
	for _, o := range strings.Fields(objects) {
		if o == "|" {
			l.head = len(l.objects)
			continue
		}
		n := 1
		name, chunks, ok := strings.Cut(o, "*")
		if ok {
			if _, err := fmt.Sscan(chunks, &n); err != nil {
				panic(err)
			}
		}
		l.objects = append(l.objects, prefetch.Object{Key: key(name), Size: int64(n) * mib, Chunks: n})
	}
	return l
}

func (l *testLayer) CID() string { return l.cid }

func (l *testLayer) Total() (objects int, size int64) {
	for _, o := range l.objects {
		size += o.Size
	}
	return len(l.objects), size
}

// Object numbers objects from the last on: a number is no place in the blob.
func (l *testLayer) Object(n int32) (prefetch.Object, bool) {
	return l.objects[len(l.objects)-1-int(n)], true
}

func (l *testLayer) Order(head bool) (order []int32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ordered++
	for i := range l.objects {
		if i < l.head || !head {
			order = append(order, int32(len(l.objects)-1-i))
		}
	}
	return order
}

// store is the cache and where chunks come from.
type store struct {
	names map[cache.Key]string
	// fails and keeps are asked for each chunk, by a name as in began.
	fails func(name string) error
	keeps func(name string) bool
	takes time.Duration // a chunk

	mu      sync.Mutex
	began   []string          // "name" or "name#chunk", in order
	at      []time.Time       // when
	have    map[cache.Key]int // chunks, complete or not
	need    map[cache.Key]int
	active  int
	most    int // active at once
	stopped int // by their context
	room    int64
	readers int
	last    time.Time // when the last reader left
	left    chan struct{}
}

func newStore(layers ...*testLayer) *store {
	s := &store{
		names: map[cache.Key]string{}, have: map[cache.Key]int{}, need: map[cache.Key]int{},
		takes: time.Millisecond, room: 1 << 40, left: make(chan struct{}),
		fails: func(string) error { return nil }, keeps: func(string) bool { return true },
	}
	for _, l := range layers {
		for _, o := range l.objects {
			s.need[o.Key] = o.Chunks
		}
	}
	return s
}

// named has what began be told by the names that layerOf was given.
func (s *store) named(objects string) *store {
	for _, o := range strings.Fields(objects) {
		name, _, _ := strings.Cut(o, "*")
		s.names[key(name)] = name
	}
	return s
}

func (s *store) Has(k cache.Key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.has(k)
}

func (s *store) has(k cache.Key) bool { return s.have[k] > 0 && s.have[k] == s.need[k] }

func (s *store) HasRoom(n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return n <= s.room
}

func (s *store) Prefetch(ctx context.Context, k cache.Key, chunk int) (bool, error) {
	name := s.names[k]
	s.mu.Lock()
	if s.need[k] > 1 {
		name = fmt.Sprintf("%s#%d", name, chunk)
	}
	s.began, s.at = append(s.began, name), append(s.at, time.Now())
	s.active++
	s.most = max(s.most, s.active)
	s.mu.Unlock()
	err := s.fails(name)
	select {
	case <-time.After(s.takes):
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active--
	switch {
	case ctx.Err() != nil:
		s.stopped++
		return false, err
	case err != nil || !s.keeps(name):
		return false, err
	}
	s.have[k]++
	return true, nil
}

func (s *store) Quiet(ctx context.Context, d time.Duration) error {
	for {
		s.mu.Lock()
		readers, wait, left := s.readers, time.Until(s.last.Add(d)), s.left
		s.mu.Unlock()
		if readers == 0 && wait <= 0 {
			return ctx.Err()
		}
		var over <-chan time.Time
		if readers == 0 {
			over = time.After(wait)
		}
		select {
		case <-left:
		case <-over:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// read has one more container read, or with -1 one less.
func (s *store) read(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readers += n
	s.last = time.Now()
	close(s.left)
	s.left = make(chan struct{})
}

func (s *store) setRoom(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.room = n
}

// put has an object come, and evict go, without the prefetcher's doing.
func (s *store) put(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.have[key(name)] = s.need[key(name)]
}

func (s *store) evict(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.have, key(name))
}

// fetched returns what began since it was last asked, sorted when several
// begin at once: then it is for the runtime to say which is first.
func (s *store) fetched() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.most > 1 {
		slices.Sort(s.began)
	}
	began := strings.Join(s.began, " ")
	s.began, s.at = nil, nil
	return began
}

func (s *store) times() []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.at)
}

// log is what was logged.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// lines returns how many lines hold this.
func (l *log) lines(what string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		if strings.Contains(line, what) {
			n++
		}
	}
	return n
}

// in runs fn with a prefetcher over s, in a time of its own.
func in(t *testing.T, cfg prefetch.Config, s *store, fn func(p *prefetch.Prefetcher, l *log)) {
	t.Helper()
	synctest.Test(t, func(*testing.T) {
		s.left = make(chan struct{}) // of this time
		l := new(log)
		p := prefetch.New(cfg, s, slog.New(slog.NewTextHandler(l, nil)))
		defer p.Close()
		fn(p, l)
	})
}

// all fetches heads and the rest, chunk by chunk.
var all = prefetch.Config{Head: true, Background: true, Concurrency: 1, Quiet: 200 * time.Millisecond}

// after lets time pass until everything stands still.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %s, want %s", what, got, want)
	}
}

// state returns the progress of a layer in one line.
func state(p *prefetch.Prefetcher, cid string) string {
	for _, l := range p.Progress() {
		if l.CID == cid {
			return strings.TrimSpace(fmt.Sprintf("%s %d/%d %d/%d MiB %s", l.State, l.Objects, l.TotalObjects, l.Bytes/mib, l.TotalBytes/mib, l.Reason))
		}
	}
	return "unknown"
}
