package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"sync"
	"syscall"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testbed"
)

// stopLimit is for an agent to close its peers.
const stopLimit = 30 * time.Second

// Agent is a running agent. Its methods wait for the answer; one call is under
// way at a time. One whose context ended before the answer came leaves the
// agent of no use but to be closed.
type Agent struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	replies chan reply
	done    chan struct{} // it has ended
	err     error         // how, after done
	calls   sync.Mutex
	end     sync.Once
	endErr  error
}

// Start starts an agent on a node of a testbed. Its log goes to a file among
// the node's.
func Start(ctx context.Context, n *testbed.Node, name string) (*Agent, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(n.Dir, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the agent has its own
	a := &Agent{replies: make(chan reply), done: make(chan struct{})}
	// It is ended by us, in order, and not by whoever ends ctx.
	a.cmd = n.Command(context.WithoutCancel(ctx), self, Argument)
	a.cmd.Stderr = log
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if a.in, err = a.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := a.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := n.Namespace.Start(a.cmd); err != nil {
		return nil, fmt.Errorf("agent %s: %w", name, err)
	}
	go a.read(out)
	return a, nil
}

// read hands on what the agent says until it ends.
func (a *Agent) read(out io.Reader) {
	d := json.NewDecoder(bufio.NewReader(out))
	for {
		var r reply
		if err := d.Decode(&r); err != nil {
			break
		}
		a.replies <- r
	}
	a.err = a.cmd.Wait()
	close(a.done)
}

// Close ends the agent and its peers. One that was killed before is no error.
func (a *Agent) Close() error {
	a.end.Do(func() {
		closeErr := a.in.Close()
		timeout := time.NewTimer(stopLimit)
		defer timeout.Stop()
		for {
			select {
			case <-a.done:
				a.endErr = errors.Join(closeErr, a.err)
				return
			case <-a.replies: // of a call that was given up
			case <-timeout.C:
				a.endErr = errors.Join(fmt.Errorf("an agent did not end within %v of its input", stopLimit), a.cmd.Process.Kill())
			}
		}
	})
	return a.endErr
}

// Kill ends the agent at once.
func (a *Agent) Kill() error {
	var err error
	a.end.Do(func() {
		err = a.cmd.Process.Kill()
		for {
			select {
			case <-a.done:
				return
			case <-a.replies:
			}
		}
	})
	return err
}

// call sends a request, named by its type, and waits for the answer.
func (a *Agent) call(ctx context.Context, args, result any, progress func(Progress)) error {
	a.calls.Lock()
	defer a.calls.Unlock()
	raw, err := json.Marshal(args)
	if err != nil {
		return err
	}
	line, err := json.Marshal(request{Do: reflect.TypeOf(args).Name(), Args: raw})
	if err != nil {
		return err
	}
	if _, err := a.in.Write(append(line, '\n')); err != nil {
		return err
	}
	for {
		select {
		case r := <-a.replies:
			switch {
			case r.Progress != nil:
				if progress != nil {
					progress(*r.Progress)
				}
			case r.Error != "":
				return errors.New("agent: " + r.Error)
			default:
				return json.Unmarshal(r.Result, result)
			}
		case <-a.done:
			return fmt.Errorf("the agent ended: %w", errors.Join(a.err, io.ErrUnexpectedEOF))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Identify asks for the id that a node has, or will have.
func (a *Agent) Identify(ctx context.Context, r Identify) (out Identified, err error) {
	err = a.call(ctx, r, &out, nil)
	return out, err
}

// Open starts a peer.
func (a *Agent) Open(ctx context.Context, r Open) (out Opened, err error) {
	err = a.call(ctx, r, &out, nil)
	return out, err
}

// Connect waits for connections.
func (a *Agent) Connect(ctx context.Context, r Connect) error {
	return a.call(ctx, r, &struct{}{}, nil)
}

// Seed gives a peer content.
func (a *Agent) Seed(ctx context.Context, r Seed) (out Seeded, err error) {
	err = a.call(ctx, r, &out, nil)
	return out, err
}

// Fetch has a peer fetch; progress, which may be nil, is called meanwhile if
// the request asks for it.
func (a *Agent) Fetch(ctx context.Context, r Fetch, progress func(Progress)) (out Fetched, err error) {
	err = a.call(ctx, r, &out, progress)
	return out, err
}

// Verify compares what a peer has fetched with what it should be.
func (a *Agent) Verify(ctx context.Context, r Verify) error {
	return a.call(ctx, r, &struct{}{}, nil)
}

// Usage asks what the process has used up.
func (a *Agent) Usage(ctx context.Context) (out Used, err error) {
	err = a.call(ctx, Usage{}, &out, nil)
	return out, err
}
