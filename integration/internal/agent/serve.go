package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Serve answers requests from in, one after another, until it ends. All peers
// are closed then. It is what a program does that was started as an agent.
func Serve(ctx context.Context, in io.Reader, out io.Writer) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &server{out: json.NewEncoder(out), known: make(known)}
	defer func() { err = errors.Join(err, s.close()) }()

	// Read ahead, so that a request under way ends with the input too.
	requests := make(chan request)
	var reader sync.WaitGroup
	defer reader.Wait()
	var readErr error
	reader.Go(func() {
		defer cancel()
		defer close(requests)
		d := json.NewDecoder(bufio.NewReader(in))
		for {
			var r request
			if readErr = d.Decode(&r); readErr != nil {
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	})
	for r := range requests {
		var answer reply
		result, err := s.do(ctx, r)
		if err == nil {
			answer.Result, err = json.Marshal(result)
		}
		if err != nil {
			answer.Error = fmt.Sprintf("%s: %v", r.Do, err)
		}
		if err := s.write(answer); err != nil {
			cancel()
			return err
		}
	}
	if errors.Is(readErr, io.EOF) {
		return nil
	}
	return readErr
}

// server is the agent's state.
type server struct {
	mu    sync.Mutex // of out
	out   *json.Encoder
	peers []*ipfsPeer
	known known
}

func (s *server) write(r reply) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Encode(r)
}

func (s *server) close() error {
	errs := make([]error, len(s.peers))
	var all sync.WaitGroup
	for i, p := range s.peers {
		all.Go(func() { errs[i] = p.close() })
	}
	all.Wait()
	return errors.Join(errs...)
}

func (s *server) do(ctx context.Context, r request) (any, error) {
	switch r.Do {
	case "Identify":
		return with(r, func(a Identify) (Identified, error) { return identify(ctx, a) })
	case "Open":
		return with(r, func(a Open) (Opened, error) { return s.open(ctx, a) })
	case "Connect":
		return with(r, func(a Connect) (struct{}, error) { return struct{}{}, s.connect(ctx, a) })
	case "Seed":
		return with(r, func(a Seed) (Seeded, error) { return s.seed(ctx, a) })
	case "Fetch":
		return with(r, func(a Fetch) (Fetched, error) { return s.fetch(ctx, a) })
	case "Verify":
		return with(r, func(a Verify) (struct{}, error) { return struct{}{}, s.verify(ctx, a) })
	case "Usage":
		return with(r, func(Usage) (Used, error) { return used() })
	default:
		return nil, errors.New("unknown request")
	}
}

func with[A, R any](r request, f func(A) (R, error)) (R, error) {
	var a A
	if err := json.Unmarshal(r.Args, &a); err != nil {
		var none R
		return none, err
	}
	return f(a)
}

func (s *server) peer(i int) (*ipfsPeer, error) {
	if i < 0 || i >= len(s.peers) {
		return nil, fmt.Errorf("there is no peer %d", i)
	}
	return s.peers[i], nil
}

func (s *server) open(ctx context.Context, o Open) (Opened, error) {
	p, err := openPeer(ctx, o)
	if err != nil {
		return Opened{}, err
	}
	s.peers = append(s.peers, p)
	return Opened{Peer: len(s.peers) - 1, Addrs: p.addrs}, nil
}

func (s *server) connect(ctx context.Context, c Connect) error {
	p, err := s.peer(c.Peer)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for p.connected() < c.Count {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d peers are connected: %w", p.connected(), c.Count, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

func (s *server) seed(ctx context.Context, a Seed) (Seeded, error) {
	p, err := s.peer(a.Peer)
	if err != nil {
		return Seeded{}, err
	}
	root, err := a.Content.build(ctx, s.known, a.keeps, p.put)
	if err != nil {
		return Seeded{}, err
	}
	return Seeded{root.String()}, nil
}

func used() (Used, error) {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return Used{}, err
	}
	return Used{time.Duration(r.Utime.Nano() + r.Stime.Nano())}, nil
}
