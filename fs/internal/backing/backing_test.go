package backing

import (
	"bytes"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kernel is a [Kernel] that keeps what is registered, and can refuse.
type kernel struct {
	t     *testing.T
	mu    sync.Mutex
	errno syscall.Errno
	next  int32
	ids   map[int32]bool
	asked int
}

func (k *kernel) RegisterBackingFd(m *fuse.BackingMap) (int32, syscall.Errno) {
	var st syscall.Stat_t
	if err := syscall.Fstat(int(m.Fd), &st); err != nil {
		k.t.Errorf("descriptor %d: %v", m.Fd, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked++
	if k.errno != 0 {
		return 0, k.errno
	}
	k.next++
	k.ids[k.next] = true
	return k.next, 0
}

func (k *kernel) UnregisterBackingFd(id int32) syscall.Errno {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.ids[id] {
		k.t.Errorf("id %d is unregistered, and is not registered", id)
	}
	delete(k.ids, id)
	return 0
}

func newPool(t *testing.T, limit int) (*Pool, *kernel, *bytes.Buffer) {
	k := &kernel{t: t, ids: map[int32]bool{}}
	log := new(bytes.Buffer)
	return New(k, limit, slog.New(slog.NewTextHandler(log, nil))), k, log
}

func file() (*os.File, error) { return os.Open(os.DevNull) }

func none() (*os.File, error) { return nil, os.ErrNotExist }

// TestFirstOpenDecides checks that a node goes one way until its last release.
func TestFirstOpenDecides(t *testing.T) {
	p, k, _ := newPool(t, 10)
	if _, ok := p.Acquire(1, none); ok {
		t.Fatal("passthrough of what is not there")
	}
	if _, ok := p.Acquire(1, file); ok {
		t.Fatal("changed while open")
	}
	p.Release(1)
	if _, ok := p.Acquire(1, file); ok {
		t.Fatal("changed while open")
	}
	p.Release(1)
	p.Release(1)
	id, ok := p.Acquire(1, file)
	if !ok {
		t.Fatal("still read through FUSE after its last release")
	}
	if again, ok := p.Acquire(1, none); !ok || again != id {
		t.Fatalf("the second open has backing file %d, %v, want %d", again, ok, id)
	}
	p.Release(1)
	if len(k.ids) != 1 || p.Registered() != 1 {
		t.Fatal("unregistered while open")
	}
	p.Release(1)
	p.Release(1) // one too many
	p.Release(2) // never opened
	if len(k.ids) != 0 || p.Registered() != 0 || len(p.nodes) != 0 {
		t.Errorf("%d files registered, %d nodes, after the last release", len(k.ids), len(p.nodes))
	}
}

func TestLimit(t *testing.T) {
	p, k, log := newPool(t, 3)
	for id := range uint64(5) {
		if _, ok := p.Acquire(id, file); ok != (id < 3) {
			t.Errorf("node %d: %v", id, ok)
		}
	}
	p.Release(0)
	if _, ok := p.Acquire(5, file); !ok || len(k.ids) != 3 {
		t.Errorf("%v with %d registered", ok, len(k.ids))
	}
	if log.Len() > 0 {
		t.Errorf("logged %q", log)
	}
	p, k, _ = newPool(t, 0)
	if _, ok := p.Acquire(1, file); ok || k.asked != 0 {
		t.Error("a pool of none has one")
	}
}

// TestRefusal checks that a kernel that cannot is asked and told of once, and
// one that cannot now is asked again.
func TestRefusal(t *testing.T) {
	for errno, always := range map[syscall.Errno]bool{
		syscall.EPERM: true, syscall.ENOSYS: true, syscall.ELOOP: true, syscall.ENOMEM: false, syscall.EMFILE: false,
	} {
		p, k, log := newPool(t, 10)
		k.errno = errno
		for id := range uint64(3) {
			if _, ok := p.Acquire(id, file); ok {
				t.Errorf("%v: passthrough", errno)
			}
		}
		if always != (k.asked == 1) || always != (bytes.Count(log.Bytes(), []byte("level=INFO")) == 1) {
			t.Errorf("%v: asked %d times, log %q", errno, k.asked, log)
		}
		k.errno = 0
		if _, ok := p.Acquire(9, file); ok == always {
			t.Errorf("%v, and then none: passthrough %v", errno, ok)
		}
	}
	p, k, log := newPool(t, 10)
	broken := errors.New("broken")
	if _, ok := p.Acquire(1, func() (*os.File, error) { return nil, broken }); ok || k.asked != 0 || log.Len() > 0 {
		t.Errorf("%v, asked %d times, log %q", ok, k.asked, log)
	}
}

// TestConcurrent checks under many openers that all who have a node open at
// once are told the same, and that nothing is left at the end.
func TestConcurrent(t *testing.T) {
	p, k, _ := newPool(t, 4)
	type state struct {
		mu    sync.Mutex
		opens int
		id    int32
	}
	var states [8]state
	var wg sync.WaitGroup
	for seed := range uint64(8) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, 1))
			for range 500 {
				node := r.Uint64N(uint64(len(states)))
				s := &states[node]
				open := file
				if r.IntN(3) == 0 {
					open = none
				}
				s.mu.Lock()
				id, _ := p.Acquire(node, open)
				if s.opens > 0 && id != s.id {
					t.Errorf("node %d is open as %d, and now %d", node, s.id, id)
				}
				s.opens, s.id = s.opens+1, id
				s.mu.Unlock()
				if p.Registered() > 4+8 { // who finds the pool full is counted for a moment
					t.Error("over the limit")
				}
				s.mu.Lock()
				s.opens--
				p.Release(node)
				s.mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(k.ids) != 0 || p.Registered() != 0 || len(p.nodes) != 0 {
		t.Errorf("%d files registered, %d nodes left", len(k.ids), len(p.nodes))
	}
}
