package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/ipfs-stargz/ipfs-stargz/integration/internal/testnet"
)

const (
	// startLimit is for a program to say that it is ready, on a busy machine.
	startLimit = 60 * time.Second
	// stopLimit is for a program to end after SIGTERM.
	stopLimit = 20 * time.Second
)

// process is a program that runs until it is stopped.
type process struct {
	name string
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{} // closed once it has ended
	err  error         // how, after done
}

// startProcess starts cmd in a namespace and waits until it says by sd_notify
// that it is ready. Its output is added to the file at log.
func startProcess(ctx context.Context, ns *testnet.Namespace, cmd *exec.Cmd, notify, log string) (*process, error) {
	name := cmd.Args[0]
	if err := os.Remove(notify); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = f, f
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+notify)
	// A signal to us from the terminal is ours to pass on, in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := ns.Start(cmd); err != nil {
		return nil, errors.Join(fmt.Errorf("starting %s: %w", name, err), f.Close())
	}
	p := &process{name: name, cmd: cmd, log: f, done: make(chan struct{})}
	go func() {
		p.err = errors.Join(cmd.Wait(), f.Close())
		close(p.done)
	}()
	if err := p.ready(ctx, l); err != nil {
		text, _ := os.ReadFile(log)
		return nil, errors.Join(fmt.Errorf("starting %s: %w", name, err), p.kill(), errors.New(string(text)))
	}
	return p, nil
}

// ready waits for READY=1 on l.
func (p *process) ready(ctx context.Context, l *net.UnixConn) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	ready := make(chan error, 1)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := l.Read(buf)
			if err != nil {
				ready <- err
				return
			}
			for line := range bytes.Lines(buf[:n]) {
				if string(bytes.TrimSpace(line)) == "READY=1" {
					ready <- nil
					return
				}
			}
		}
	}()
	var err error
	select {
	case err = <-ready:
		return err
	case <-p.done:
		err = fmt.Errorf("it ended before it was ready: %w", p.err)
	case <-ctx.Done():
		err = fmt.Errorf("it is not ready: %w", ctx.Err())
	}
	// Closing the socket ends the reader.
	return errors.Join(err, l.Close(), discardClosed(<-ready))
}

func discardClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// stop ends the process by SIGTERM; one that does not end is killed, which is
// an error, as is an exit code.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("%s: %w", p.name, p.err)
		}
		return nil
	case <-time.After(stopLimit):
		return errors.Join(fmt.Errorf("%s did not end within %v of SIGTERM", p.name, stopLimit), p.kill())
	}
}

// kill ends the process by SIGKILL.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	return nil
}

// run runs a program outside of the namespaces; an error has its output.
func run(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
